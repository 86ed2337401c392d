"""Running a compiled model: on a Snapdragon its NPU does it, on x86-64 the SDK's emulator, slowly but to the same bits.

Never take the time of an emulated run for a figure of the NPU.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.interface import Array, Executable, TensorSpec
from flagsplit.targets.mobile.qnn.compiler import where
from flagsplit.targets.mobile.qnn.process import SdkDiedError, SdkProcess, SdkRefusedError
from flagsplit.targets.mobile.qnn.socs import Soc
from flagsplit.targets.onnx_engine import DTYPES
from flagsplit.targets.segment_table import ChipCall, ChipTensor


def open_compiled(file: Path, call: ChipCall, soc: Soc) -> Executable:
    """Open a compiled model; no node of it may fall to the CPU.

    Raises:
        BundleError: it is damaged, or takes or gives other tensors than `call` says.
        ConfigError: the SDK is not installed.
    """
    if not file.is_file():
        raise BundleError(f"the bundle has no {file.name}; get it again")
    sdk = SdkProcess()
    try:
        found, _ = sdk.ask({"do": "open", "file": str(file), **where(soc)})
        for side, expected in (("inputs", call.inputs), ("outputs", call.outputs)):
            _check_same(file, found.get(side), expected)
    except (SdkDiedError, SdkRefusedError) as error:
        sdk.close()
        raise BundleError(f"the context binary {file.name} cannot be loaded: {_short(error)}; build it again") from None
    except BundleError:
        sdk.close()
        raise
    return _InSdk(sdk, call)


class _InSdk:
    """A model that is open in the process with the SDK."""

    def __init__(self, sdk: SdkProcess, call: ChipCall) -> None:
        self._sdk: SdkProcess | None = sdk
        self._call = call
        self._inputs = tuple(spec.to_spec() for spec in call.inputs)
        self._outputs = tuple(spec.to_spec() for spec in call.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if self._sdk is None:
            raise InputError("this segment was closed; load it again")
        given = {spec.called: _checked(tensors.get(spec.name), spec) for spec in self._call.inputs}
        try:
            _, made = self._sdk.ask({"do": "run"}, given)
        except (SdkDiedError, SdkRefusedError) as error:
            raise InputError(f"the NPU could not run the model on these inputs: {_short(error)}") from None
        return {spec.name: made[spec.called].astype(spec.dtype, copy=False) for spec in self._call.outputs}

    def close(self) -> None:
        if self._sdk is not None:
            self._sdk.close()
            self._sdk = None


def _checked(array: Array | None, spec: ChipTensor) -> Array:
    if array is None:
        raise InputError(f"expected an input {spec.name!r}, came none")
    if array.dtype.name != spec.dtype or list(array.shape) != spec.shape:
        came = f"{array.dtype.name} {list(array.shape)}"
        raise InputError(f"expected {spec.name!r} as {spec.dtype} {spec.shape}, came {came}")
    if array.dtype == np.int64 and array.size and max(-int(array.min()), int(array.max())) > _MOST_INT:
        raise InputError(f"{spec.name!r} has integers of over 32 bits, which the NPU does not have")
    return array.astype(spec.passed_as or spec.dtype, copy=False)


_MOST_INT = (1 << 31) - 1


def _check_same(file: Path, found: Any, expected: Sequence[ChipTensor]) -> None:
    told = [[each.called, each.passed_as or each.dtype, each.shape] for each in expected]
    came = [[name, DTYPES.get(kind, kind), shape] for name, kind, shape in found]
    if came != told:
        raise BundleError(f"{file.name} takes or gives other tensors than segments.json says; get the bundle again")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
