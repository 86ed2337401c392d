"""ONNX Runtime on this host: how a model is opened and run, for every target that has it do a part.

With numerics "exact" the optimizer is kept from what rounds differently where a graph is cut: blocked layouts, int8
kernels, factors taken into matrix products; and casts around what a CPU computes in single precision are written out.
Other providers than the CPU's are never taken at the engine's word: it lists what then fails to load, and falls back to
the CPU without an error, when a session is made and again at each run. What counts is what a session says that it got.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from flagsplit.errors import BundleError, ConfigError, InputError
from flagsplit.targets.interface import Array, Executable, Numerics, TensorSpec
from flagsplit.targets.older_kernels import say_in_older
from flagsplit.targets.written_half import write_out_half

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
"""NumPy names of the element types, by ONNX Runtime's."""

PAIRS_AS_THEY_ARE = {"session.disable_quant_qdq": "1"}
"""A setting: QuantizeLinear and DequantizeLinear are computed one by one, not fused with what lies between them."""

_SCALES_STAY = {"optimization.disable_specified_optimizers": "MatMulScaleFusion"}
"""A setting: factors are not taken into the products before and after them, which may be in another segment."""

_INT8_STAYS = {"session.qdqisint8allowed": "1"}
"""A setting: int8 is not made uint8, which this engine does in part only where a graph ends within int8."""

_WEIGHTS_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"
_NO_CPU_KEY = "session.disable_cpu_ep_fallback"
_CPU = "CPUExecutionProvider"
_log = logging.getLogger(__name__)


def open_onnx(
    file: Path, weights: Path | None, numerics: Numerics, threads: int, settings: Mapping[str, str] | None = None
) -> Executable:
    """Open a model; its weights are mapped, not copied, until the engine packs them.

    Args:
        file: an ONNX file.
        weights: the file of its large weights, if there are any.
        numerics: see `Numerics`.
        threads: how many threads one run may use; 0 lets the engine choose.
        settings: more of the engine's session configuration, such as `PAIRS_AS_THEY_ARE`.

    Raises:
        BundleError: the engine cannot load it.
    """

    options = session_settings(weights, numerics, threads)
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        content = file.read_bytes()
        session = _on_cpu(_rounding_alike(content) if numerics == "exact" else content, options)
    except Exception as error:
        raise BundleError(f"ONNX Runtime cannot load {file.name}: {_short(error)}; build the bundle again") from error
    return OrtExecutable(session)


def _on_cpu(content: bytes, options: Any) -> Any:
    """A session on the CPU; where kernels are missing for operators of FlagIR's opset, in an older one."""
    import onnxruntime as ort
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    try:
        return ort.InferenceSession(content, options, providers=[_CPU])
    except NoKernel:
        model = onnx.ModelProto.FromString(content)
        if not say_in_older(model):
            raise
    return ort.InferenceSession(model.SerializeToString(), options, providers=[_CPU])


def _rounding_alike(content: bytes) -> bytes:
    """A model that rounds between nodes wherever it is cut."""
    model = onnx.ModelProto.FromString(content)
    return bytes(model.SerializeToString()) if write_out_half(model) else content


def open_on_provider(
    file: Path,
    weights: Path | None,
    threads: int,
    providers: Mapping[str, Mapping[str, str]],
    advice: str,
    *,
    beside_cpu: bool = True,
) -> Executable:
    """Open a model on another provider than the CPU's, with numerics "fast".

    Single nodes that none of them takes run on the CPU, and a warning of the log says how many; a session that the
    first of them has no part in is refused.

    Args:
        file: an ONNX file.
        weights: the file of its large weights, if there are any.
        threads: how many threads one run may use on the CPU; 0 lets the engine choose.
        providers: their options by name, the preferred first.
        advice: what to install or do where they are missing.
        beside_cpu: whether single nodes may run on the CPU; else a model that leaves one there cannot be loaded.

    Raises:
        BundleError: the provider is there, and cannot load it.
        ConfigError: the engine lacks the first provider, cannot make it, or fell back to another.
    """
    import onnxruntime as ort

    there, (first, *_) = ort.get_available_providers(), providers
    if first not in there:
        raise ConfigError(f"ONNX Runtime {ort.__version__} has no {first}, but {', '.join(there)}; {advice}")
    settings = session_settings(weights, "fast", threads)
    settings.add_session_config_entry(_ASSIGNMENT_KEY, "1")
    asked: list[Any] = [(name, dict(given)) for name, given in providers.items() if name in there]
    if beside_cpu:
        asked.append(_CPU)
    else:
        settings.add_session_config_entry(_NO_CPU_KEY, "1")
    try:
        session = ort.InferenceSession(file.read_bytes(), settings, providers=asked, enable_fallback=0)
    except Exception as error:
        if not _can_be_made(asked[0]):
            raise ConfigError(f"ONNX Runtime lists {first}, but cannot make it: {_short(error)}; {advice}") from error
        raise BundleError(f"ONNX Runtime cannot load {file.name} with {first}: {_short(error)}; {advice}") from error
    refuse_fallback(session.get_providers(), [first], advice)
    opened = OrtExecutable(session)
    _check_assignment(file.name, first, nodes_by_provider(session), advice)
    return opened


def _can_be_made(asked: Any) -> bool:
    """Whether a provider, with its options, opens a model of one addition."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        ort.InferenceSession(_addition(), settings, providers=[asked, _CPU], enable_fallback=0)
    except Exception:  # noqa: BLE001 - whatever it is, it is not for the model's sake
        return False
    return True


def _addition() -> bytes:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def refuse_fallback(got: Sequence[str], wanted: Sequence[str], advice: str) -> None:
    """Refuse a session that fell back, as to the CPU.

    Args:
        got: what `session.get_providers()` says.
        wanted: the providers of which the first that it got must be one.
        advice: what to do then.

    Raises:
        ConfigError: it is none of them.
    """
    if got and got[0] in wanted:
        return
    where = "the CPU" if not got or got[0] == _CPU else got[0]
    raise ConfigError(
        f"ONNX Runtime lists {' or '.join(wanted)}, but its session got {', '.join(got) or 'none'} and would run on "
        f"{where} without a word; a library that the provider needs is missing or of another version; {advice}"
    )


def nodes_by_provider(session: Any) -> dict[str, int]:
    """How many nodes of the optimized graph each provider runs; empty where the engine does not tell.

    A provider that compiles a subgraph to one node counts with the nodes that it took.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name] += len(part.get_nodes())
    return dict(found)


def _check_assignment(file: str, first: str, counts: Mapping[str, int], advice: str) -> None:
    """Refuse a graph of which the provider runs nothing; warn of nodes that the CPU runs beside it."""
    on_cpu, all_nodes = counts.get(_CPU, 0), sum(counts.values())
    if not on_cpu:
        return
    if on_cpu == all_nodes:
        raise ConfigError(f"{first} takes none of the {all_nodes} nodes of {file}: all would run on the CPU; {advice}")
    _log.warning("%d of %d nodes of %s run on the CPU beside %s", on_cpu, all_nodes, file, first)


def session_settings(weights: Path | None, numerics: Numerics, threads: int) -> Any:
    """The options of a session; see `open_onnx`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER_KEY, str(weights.parent))
    levels = ort.GraphOptimizationLevel
    exact = numerics == "exact"
    for key, value in (PAIRS_AS_THEY_ARE | _SCALES_STAY if exact else _INT8_STAYS).items():
        options.add_session_config_entry(key, value)
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if exact else levels.ORT_ENABLE_ALL
    return options


class OrtExecutable:
    """An open ONNX Runtime session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = tuple(_spec(value) for value in session.get_inputs())
        self._outputs = tuple(_spec(value) for value in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(self._output_names, dict(tensors))
        except Exception as error:
            raise InputError(f"ONNX Runtime could not run the model on these inputs: {_short(error)}") from error
        return {name: np.asarray(array) for name, array in zip(self._output_names, results, strict=True)}

    def close(self) -> None:
        self._session = None


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in value.shape)
    return TensorSpec(value.name, DTYPES.get(value.type, value.type), shape)


def ran_out_of_memory(error: InputError) -> bool:
    """Whether a run failed for want of memory, so that the inputs are not to blame, or not alone."""
    return "Failed to allocate memory" in str(error.__cause__)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
