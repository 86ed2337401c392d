"""A module compiled for the GPU of this host, and replayed as one CUDA graph.

PyTorch exports the module, its compiler makes kernels of it, and all launches of a run are recorded once: a run is then
a copy of the inputs and one call. PyTorch keeps what it compiled by content, version and architecture, in a folder of
ours; beside it stands which way of compiling was the quickest for a part on a GPU.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.style import Style
from flagsplit.targets.cloud.cuda.sdk import torch

Run = Callable[..., Sequence[Any]]

_LOG = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()
"""PyTorch's compiler is the process's, and its settings are."""


@dataclass(frozen=True)
class Way:
    """One way to compile.

    Attributes:
        tune: the least choice of `tune` at which it is tried.
        fits: the kinds of graphs that it is tried for; see `compiled`.
        style: how operators are written that have several forms.
        options: of the compiler; see torch._inductor.config.
        attention: the kernels that attention may use, by PyTorch's names; PyTorch's choice if there are none.
    """

    tune: str
    fits: frozenset[str]
    style: Style = field(default_factory=Style)
    options: Mapping[str, Any] = field(default_factory=dict)
    attention: tuple[str, ...] = ()


_TUNED = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "ATEN,TRITON",
    "max_autotune_conv_backends": "ATEN",
    "coordinate_descent_tuning": True,
    "inductor_default_autotune_warmup": 5,
    "inductor_default_autotune_rep": 25,
}
_PRODUCTS, _IMAGES, _DEPTHWISE = (frozenset((name,)) for name in ("products", "images", "depthwise"))
_LEVELS = ("fast", "some", "most")
WAYS: Mapping[str, Way] = {
    "plain": Way("fast", _PRODUCTS | _IMAGES | _DEPTHWISE),
    "cudnn": Way("some", _IMAGES, Style(cudnn=True)),
    "shifts": Way("some", _DEPTHWISE, Style(shifts=True)),
    "cudnn_attention": Way("some", _PRODUCTS, attention=("CUDNN_ATTENTION",)),
    "tuned": Way("most", _PRODUCTS, options=_TUNED),
    "products": Way("most", _IMAGES | _DEPTHWISE, Style(products=True), _TUNED),
    "products_and_shifts": Way("most", _DEPTHWISE, Style(products=True, shifts=True), _TUNED),
}
"""What is tried, by name."""

_WARM_UP_RUNS = 3
_TIMED_RUNS = 30


class Replay:
    """A function of tensors recorded as a CUDA graph.

    Args:
        run: what to record; it has to do the same each time.
        examples: tensors of the shapes, types and memory layouts to be given.

    Attributes:
        inputs: what the recorded run reads; `__call__` copies into them.
        outputs: what it writes; the next run overwrites them.
    """

    def __init__(self, run: Run, examples: Sequence[Any]) -> None:
        self.inputs = [each.clone() for each in examples]
        self._run = run  # the graph reads its weights where they lie: they have to stay there
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream), _cudnn_tries():
            for _ in range(_WARM_UP_RUNS):
                run(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may run segments meanwhile, which "thread_local" does not hold against this one.
        with torch.no_grad(), _cudnn_tries(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.outputs = list(run(*self.inputs))

    def __call__(self, *tensors: Any) -> list[Any]:
        for own, given in zip(self.inputs, tensors, strict=True):
            if own is not given:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self.outputs

    def replay(self) -> None:
        """Run on what `inputs` hold."""
        self._graph.replay()


def compiled(
    module_of: Callable[[Style], Any], examples: Sequence[Any], folder: Path, tune: str, kind: str
) -> tuple[Replay, dict[str, float]]:
    """Compile a module in the ways that are to be tried, and keep the quickest.

    Args:
        module_of: gives the module in a style, on the GPU; it takes the examples.
        examples: tensors on the GPU.
        folder: where it is kept which way was the quickest; made if it is not there.
        tune: how much to try; where the folder knows which way is the quickest, that alone.
        kind: "depthwise" where pictures are convolved, some channel by channel; "images" where they are convolved
            otherwise; else "products".

    Returns:
        The program, and the milliseconds of a run by way, where several were timed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{tune}.json"
    wanted = [name for name, way in WAYS.items() if kind in way.fits and _LEVELS.index(way.tune) <= _LEVELS.index(tune)]
    if known.is_file() and (name := json.loads(known.read_text()).get("way")) in WAYS:
        wanted = [name]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / "inductor"))
    found: dict[str, Replay] = {}
    for name in wanted:
        try:
            with _ONE_AT_A_TIME:
                found[name] = Replay(_in_one_way(module_of, examples, WAYS[name]), examples)
        except Exception as error:
            if name == wanted[0]:  # the first takes everything; another may not be for this GPU or these sizes
                raise
            _LOG.info("%s is no way to compile this: %s", name, error)
    if len(found) == 1:
        return next(iter(found.values())), {}
    times = {name: _milliseconds(replay) for name, replay in found.items()}
    best = min(times, key=times.__getitem__)
    known.write_text(json.dumps({"way": best, "ms": times}))
    return found[best], times


def _in_one_way(module_of: Callable[[Style], Any], examples: Sequence[Any], way: Way) -> Run:
    with torch.no_grad():
        exported = torch.export.export(module_of(way.style), tuple(examples), strict=False).module()
        run: Run = torch.compile(exported, fullgraph=True, dynamic=False, options=dict(way.options))
        with _attention(way.attention):
            run(*examples)
    return run


def _attention(names: Sequence[str]) -> AbstractContextManager[Any]:
    """Have attention use these kernels while it is compiled."""
    if not names:
        return nullcontext()
    attention = import_module("torch.nn.attention")
    backends = [getattr(attention.SDPBackend, name) for name in names]
    kernels: AbstractContextManager[Any] = attention.sdpa_kernel(backends)
    return kernels


def _cudnn_tries() -> AbstractContextManager[Any]:
    """Have cuDNN time its kernels for each convolution, and take the quickest."""
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[Any] = cudnn.flags(enabled=True, benchmark=True, allow_tf32=cudnn.allow_tf32)
    return flags


def _milliseconds(replay: Replay) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(sorted(times)[len(times) // 2])


def cache_folder(part: Path, weights: Path, choices: Sequence[str]) -> Path:
    """Where what is compiled of a part is kept: under $FLAGSPLIT_CACHE, else ~/.cache/flagsplit.

    Args:
        part: its ONNX file, which has its shapes.
        weights: the shared weights file; its size and name in the part tell which it is.
        choices: what else makes a difference.
    """
    named = os.environ.get("FLAGSPLIT_CACHE")
    base = Path(named).expanduser() if named else Path.home() / ".cache" / "flagsplit"
    major, minor = torch.cuda.get_device_capability()
    told = [torch.__version__, torch.cuda.get_device_name(), f"{major}.{minor}", str(weights.stat().st_size), *choices]
    digest = hashlib.sha256(part.read_bytes() + "\n".join(told).encode()).hexdigest()
    return base / "cuda" / digest[:32]
