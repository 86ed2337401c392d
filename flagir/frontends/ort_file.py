"""ONNX Runtime's own files, `.ort`: the engine itself turns them into ONNX, in a process that may crash.

The result lies in a folder of its own, from which the weights are mapped; the folder lives as long as they do.
`flagsplit.flagir.model_file` calls this for every file that begins like one of the engine's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from flagsplit.errors import ConfigError, ModelError

_MAGIC = b"ORTM"
_MAX_BYTES = (1 << 31) - 1
_PROGRAM = Path(__file__).with_name("ort_to_onnx.py")
_TIME_LIMIT_S = 120
_MEMORY_BYTES = 3 << 30
"""What the interpreter and the engine may map beside the model, which is there up to five times."""
_SLACK_BYTES = 64 << 20
_MODEL_NAME = "model.onnx"
_WEIGHTS_NAME = "weights.bin"
_KEEPER = "flagsplit.folder"


def is_ort_file(head: bytes) -> bool:
    """Whether a file that begins so is one of ONNX Runtime's.

    Args:
        head: the first eight bytes, or more.
    """
    return head[4:8] == _MAGIC


def read_ort(path: Path, read_onnx: Callable[[Path], ir.Model]) -> ir.Model:
    """Read an ONNX Runtime file.

    Args:
        path: the file.
        read_onnx: reads and checks an ONNX file.

    Returns:
        The model; its operators are the engine's own where its optimizer put those.

    Raises:
        ModelError: the file is damaged, of another version, or holds what no CPU runs.
        ConfigError: there is no room for temporary files.
    """
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_BYTES:
        raise ModelError(f"expected an ONNX Runtime file of at most 2 GiB, {path} has {size_bytes / 2**30:.1f} GiB")
    try:
        folder = _Folder(Path(tempfile.mkdtemp(prefix="flagsplit-ort-")))
    except OSError as error:
        raise ConfigError(f"cannot make a temporary folder: {error}; set TMPDIR to one with room") from error
    _convert(path, folder.path / _MODEL_NAME, size_bytes)
    model = read_onnx(folder.path / _MODEL_NAME)
    _name_graphs(model)
    _keep(folder, model)
    return model


class _Folder:
    """A folder that is deleted when nobody holds this, at the latest when the interpreter ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


def _convert(source: Path, target: Path, size_bytes: int) -> None:
    limits = (_TIME_LIMIT_S, _MEMORY_BYTES + 5 * size_bytes, _SLACK_BYTES + 2 * size_bytes)
    # -P keeps a module of the current folder from being imported in place of the engine's.
    command = [
        sys.executable,
        "-P",
        str(_PROGRAM),
        str(source.resolve()),
        str(target),
        _WEIGHTS_NAME,
        *map(str, limits),
    ]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # Threads that are not needed would each take address space.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"ONNX Runtime file {source}: not read within {_TIME_LIMIT_S} s; damaged") from error
    if done.returncode or not target.is_file():
        raise ModelError(
            f"expected an ONNX Runtime file, cannot read {source}: {_reason(done)}; is it complete, and of a version "
            f"that the installed onnxruntime reads?"
        )


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"the engine ended with signal {-done.returncode}"
    words = " ".join(done.stderr.decode("utf-8", "replace").split())
    # What is in the file may end up in a terminal: no control characters, and not without end.
    return "".join(c for c in words if c.isprintable())[-300:] or "the engine gave no reason"


def _name_graphs(model: ir.Model) -> None:
    """The format keeps no names of graphs, which ONNX demands."""
    for index, graph in enumerate(model.graphs()):
        graph.name = graph.name or ("model" if graph is model.graph else f"body_{index}")


def _keep(folder: _Folder, model: ir.Model) -> None:
    """The weights may outlive the model: a segment shares them."""
    model.meta[_KEEPER] = folder
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value.meta[_KEEPER] = folder
