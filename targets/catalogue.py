"""The targets that exist, by name. Each is imported only when it is asked for."""

from collections.abc import Callable
from importlib.util import find_spec

from flagsplit.errors import PolicyError
from flagsplit.targets.interface import Target


def _ort() -> Target:
    from flagsplit.targets.cloud.ort import OrtTarget

    return OrtTarget()


def _coreml() -> Target:
    from flagsplit.targets.mobile.coreml.target import CoremlTarget

    return CoremlTarget()


def _litert() -> Target:
    from flagsplit.targets.mobile.litert.target import LitertTarget

    return LitertTarget()


def _cuda() -> Target:
    from flagsplit.targets.cloud.cuda.target import CudaTarget

    return CudaTarget()


def _qnn() -> Target:
    from flagsplit.targets.mobile.qnn.target import QnnTarget

    return QnnTarget()


def _edgetpu() -> Target:
    from flagsplit.targets.edge.edgetpu.target import EdgetpuTarget

    return EdgetpuTarget()


def _ascend() -> Target:
    from flagsplit.targets.cloud.ascend.target import AscendTarget

    return AscendTarget()


TARGETS: dict[str, Callable[[], Target]] = {
    "ort": _ort,
    "ascend": _ascend,
    "coreml": _coreml,
    "cuda": _cuda,
    "edgetpu": _edgetpu,
    "litert": _litert,
    "qnn": _qnn,
}
"""Lazy factories; a name that is not here is not a target."""

SDKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "coreml": ("coreml", ("coremltools",)),
    "cuda": ("cuda", ("torch",)),
    "edgetpu": ("edgetpu", ("ai_edge_litert",)),
    "litert": ("litert", ("ai_edge_litert",)),
    "qnn": ("qnn", ("onnxruntime_qnn",)),
}
"""By target: the extra that installs what compiles for it, and the modules of which one is needed."""


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        PolicyError: there is none; the message lists those that exist.
    """
    factory = TARGETS.get(name)
    if factory is None:
        raise PolicyError(f"expected a target ({', '.join(sorted(TARGETS))}), came {name!r}")
    return factory()


def missing_sdk(name: str) -> str:
    """Why a target cannot compile here, and what to install; "" if it can."""
    extra, modules = SDKS.get(name, ("", ()))
    if not modules or any(find_spec(module) is not None for module in modules):
        return ""
    return f"{' or '.join(modules)} is not installed; pip install 'flagsplit[{extra}]'"
