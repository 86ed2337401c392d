"""A function of a package, loaded: by Core ML itself on macOS, elsewhere by the reference interpreter."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.interface import Array, Executable, TensorSpec
from flagsplit.targets.mobile.coreml.border import from_program, spec_of, to_program
from flagsplit.targets.mobile.coreml.sdk import import_sdk, quiet
from flagsplit.targets.segment_table import ChipCall

HAS_CORE_ML = sys.platform == "darwin"

_Run = Callable[[dict[str, Array]], Mapping[str, Array]]


def load_function(package: Path, call: ChipCall) -> Executable:
    """Load one function.

    Args:
        package: the `.mlpackage`.
        call: how it is called.

    Raises:
        BundleError: the package is damaged, or has no such function.
        ConfigError: on macOS, coremltools is not installed.
    """
    return FunctionExecutable(call, _with_core_ml(package, call) if HAS_CORE_ML else _emulated(package, call))


def open_core_ml(package: Path, call: ChipCall) -> Any:
    """The `MLModel` of a function, on macOS.

    Raises:
        BundleError: Core ML cannot load it.
        ConfigError: coremltools is not installed.
    """
    ct = import_sdk()
    try:
        with quiet():
            return ct.models.MLModel(str(package), function_name=call.function)
    except Exception as error:
        raise BundleError(f"Core ML cannot load {call.function!r} of {package.name}: {_short(error)}") from error


def _with_core_ml(package: Path, call: ChipCall) -> _Run:
    model = open_core_ml(package, call)

    def run(tensors: dict[str, Array]) -> Mapping[str, Array]:
        try:
            return {name: np.asarray(array) for name, array in model.predict(tensors).items()}
        except Exception as error:
            raise InputError(f"Core ML could not run {call.function!r} on these inputs: {_short(error)}") from error

    return run


def _emulated(package: Path, call: ChipCall) -> _Run:
    from flagsplit.targets.mobile.mil import load_package

    function = load_package(package).function(call.function)
    for tensors, declared in ((call.inputs, function.inputs), (call.outputs, function.outputs)):
        if {tensor.called for tensor in tensors} != {each.name for each in declared}:
            raise BundleError(
                f"{package.name} is not the one of segments.json: {call.function!r} differs; get it again"
            )
    return function.run


class FunctionExecutable:
    """Runs a function under the names and element types of the graph.

    Args:
        call: how it is called.
        run: from tensors by name in the program to tensors by name in the program.
    """

    def __init__(self, call: ChipCall, run: _Run) -> None:
        self._call = call
        self._run: _Run | None = run

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(spec_of, self._call.inputs))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(spec_of, self._call.outputs))

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if self._run is None:
            raise InputError(f"{self._call.function!r} was closed; load it again")
        missing = [tensor.name for tensor in self._call.inputs if tensor.name not in tensors]
        if missing:
            raise InputError(f"expected an array for {missing[0]!r}, came none")
        made = self._run({each.called: to_program(each, tensors[each.name]) for each in self._call.inputs})
        return {each.name: from_program(each, made[each.called]) for each in self._call.outputs}

    def close(self) -> None:
        self._run = None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
