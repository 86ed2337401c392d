"""The interpreter on this host: ai-edge-litert's, or tflite-runtime's where that is the one installed."""

import threading
import weakref
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flagsplit.errors import BundleError, ConfigError, InputError
from flagsplit.targets.chip_call import CallExecutable
from flagsplit.targets.interface import Array, Executable
from flagsplit.targets.segment_table import ChipCall

_INTERPRETERS = ("ai_edge_litert", "tflite_runtime")
_IDENTIFIER = slice(4, 8)


def installed() -> bool:
    """Whether there is one."""
    return any(find_spec(name) is not None for name in _INTERPRETERS)


def open_signature(file: Path, call: ChipCall, threads: int, delegate: str = "") -> Executable:
    """Open one signature of a .tflite file.

    Args:
        file: the file.
        call: names the signature and its tensors.
        threads: how many threads one run may use; 0 lets the interpreter choose.
        delegate: library of a delegate that runs what it knows; "" for none.

    Raises:
        BundleError: it cannot be loaded.
        ConfigError: no interpreter is installed, or it does not work with this NumPy.
    """
    shared = _Shared.of(file, threads, delegate)
    try:
        runner = shared.interpreter.get_signature_runner(call.function)
    except (ValueError, RuntimeError) as error:
        raise _unusable(file, error) from error

    def run(tensors: dict[str, Array]) -> Mapping[str, Array]:
        try:
            with shared.lock:
                made = runner(**tensors)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"LiteRT could not run the segment on these inputs: {_short(error)}") from error
        return {each.called: made[each.called].reshape(each.shape) for each in call.outputs}

    return CallExecutable(call, run, "LiteRT")


class _Shared:
    """An interpreter that all segments of a file use, so that weights are packed once.

    A run of one waits for a run of another.
    """

    _open: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], "_Shared"]] = weakref.WeakValueDictionary()
    _opening = threading.Lock()

    def __init__(self, file: Path, threads: int, delegate: str) -> None:
        self.lock = threading.Lock()
        _check(file)
        made = _interpreter_class()
        try:
            delegates = [import_module(made.__module__).load_delegate(delegate)] if delegate else None
            self.interpreter = made(model_path=str(file), num_threads=threads or None, experimental_delegates=delegates)
        except (SystemError, ImportError) as error:  # it looks for NumPy only now
            raise ConfigError(
                f"{made.__module__.partition('.')[0]} does not work with NumPy {np.__version__}; "
                "pip install 'flagsplit[litert]'"
            ) from error
        except (ValueError, RuntimeError) as error:
            raise _unusable(file, error) from error

    @classmethod
    def of(cls, file: Path, threads: int, delegate: str) -> "_Shared":
        """The interpreter of a file, opened if it is not."""
        try:
            seen = file.stat()
        except OSError as error:
            raise BundleError(f"{file.name} cannot be read: {error.strerror}; get the bundle again") from None
        key = (str(file), seen.st_ino, seen.st_size, seen.st_mtime_ns, threads, delegate)
        with cls._opening:
            found = cls._open.get(key)
            if found is None:
                found = cls._open[key] = cls(file, threads, delegate)
            return found


def _interpreter_class() -> Any:
    for name in _INTERPRETERS:
        try:
            return import_module(f"{name}.interpreter").Interpreter
        except ImportError:
            continue
    raise ConfigError("the litert target needs ai-edge-litert, which is not installed; pip install 'flagsplit[litert]'")


def _check(file: Path) -> None:
    with file.open("rb") as opened:
        head = opened.read(8)
    if head[_IDENTIFIER] != b"TFL3":
        raise BundleError(f"{file.name} is not a TFLite file; get the bundle again")


def _unusable(file: Path, error: Exception) -> BundleError:
    return BundleError(f"LiteRT cannot load {file.name}: {_short(error)}; build the bundle again")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
