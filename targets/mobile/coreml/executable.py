"""A function of a package, loaded: by Core ML itself on macOS, elsewhere by the reference interpreter."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.chip_call import CallExecutable, Run
from flagsplit.targets.interface import Array, Executable
from flagsplit.targets.mobile.coreml.sdk import import_sdk, quiet
from flagsplit.targets.segment_table import ChipCall

HAS_CORE_ML = sys.platform == "darwin"


def load_function(package: Path, call: ChipCall) -> Executable:
    """Load one function.

    Args:
        package: the `.mlpackage`.
        call: how it is called.

    Raises:
        BundleError: the package is damaged, or has no such function.
        ConfigError: on macOS, coremltools is not installed.
    """
    run = _with_core_ml(package, call) if HAS_CORE_ML else _emulated(package, call)
    return CallExecutable(call, run, "Core ML")


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


def _with_core_ml(package: Path, call: ChipCall) -> Run:
    model = open_core_ml(package, call)

    def run(tensors: dict[str, Array]) -> Mapping[str, Array]:
        try:
            return {name: np.asarray(array) for name, array in model.predict(tensors).items()}
        except Exception as error:
            raise InputError(f"Core ML could not run {call.function!r} on these inputs: {_short(error)}") from error

    return run


def _emulated(package: Path, call: ChipCall) -> Run:
    from flagsplit.targets.mobile.mil import load_package

    function = load_package(package).function(call.function)
    for tensors, declared in ((call.inputs, function.inputs), (call.outputs, function.outputs)):
        if {tensor.called for tensor in tensors} != {each.name for each in declared}:
            raise BundleError(
                f"{package.name} is not the one of segments.json: {call.function!r} differs; get it again"
            )
    return function.run


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
