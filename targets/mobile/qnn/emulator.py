"""Running a compiled model: on a Snapdragon its NPU does it, on x86-64 the SDK's emulator, slowly but to the same bits.

Never take the time of an emulated run for a figure of the NPU.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.errors import BundleError, InputError
from flagsplit.targets.chip_call import CallExecutable
from flagsplit.targets.interface import Array, Executable
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

    def run(tensors: dict[str, Array]) -> Mapping[str, Array]:
        for spec in call.inputs:
            _check_integers(spec.name, tensors[spec.called])
        try:
            return sdk.ask({"do": "run"}, tensors)[1]
        except (SdkDiedError, SdkRefusedError) as error:
            raise InputError(f"the NPU could not run the model on these inputs: {_short(error)}") from None

    return CallExecutable(call, run, "the NPU", sdk.close)


_MOST_INT = (1 << 31) - 1


def _check_integers(name: str, array: Array) -> None:
    if array.dtype == np.int64 and array.size and max(-int(array.min()), int(array.max())) > _MOST_INT:
        raise InputError(f"{name!r} has integers of over 32 bits, which the NPU does not have")


def _check_same(file: Path, found: Any, expected: Sequence[ChipTensor]) -> None:
    told = [[each.called, each.passed_as or each.dtype, each.shape] for each in expected]
    came = [[name, DTYPES.get(kind, kind), shape] for name, kind, shape in found]
    if came != told:
        raise BundleError(f"{file.name} takes or gives other tensors than segments.json says; get the bundle again")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
