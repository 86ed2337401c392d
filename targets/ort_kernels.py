"""The kernels of ONNX Runtime's CPU provider, as the installed package registers them.

Packages with other providers end their process when they are asked (onnxruntime-openvino 1.24 does), so they are asked
in one of its own. Where that ends too, nothing is known.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

Kernel = tuple[int, int, Mapping[str, Sequence[str]]]
"""First and last version of the operator, and the types that each type variable may stand for."""

_HARMLESS = frozenset({"CPUExecutionProvider", "AzureExecutionProvider"})
_MOST_SECONDS = 60
_OPEN_END = 2**31 - 1
"""The last version of a kernel that has none."""

_Row = tuple[str, str, int, int, Mapping[str, Sequence[str]]]


def cpu_kernels() -> dict[tuple[str, str], list[Kernel]] | None:
    """By domain and operator; None where the package does not tell."""
    import onnxruntime

    rows = _registered() if _HARMLESS.issuperset(onnxruntime.get_available_providers()) else _asked_apart()
    if rows is None:
        return None
    found: dict[tuple[str, str], list[Kernel]] = {}
    for domain, name, low, high, types in rows:
        found.setdefault((domain, name), []).append((low, high, types))
    return found


def is_for(since: int, low: int, high: int) -> bool:
    """Whether a kernel of these versions runs an operator defined in `since`: an open end says no later definition."""
    return low == since if high >= _OPEN_END else low <= since <= high


def _registered() -> Iterable[_Row]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            low, high = kernel.version_range
            yield kernel.domain, kernel.op_name, low, high, dict(kernel.type_constraints)


def _asked_apart() -> list[_Row] | None:
    command = [sys.executable, "-m", "flagsplit.targets.ort_kernels"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=_MOST_SECONDS)  # noqa: S603 - our own module
        rows: list[_Row] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return rows


if __name__ == "__main__":
    print(json.dumps(list(_registered())))
