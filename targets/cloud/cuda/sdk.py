"""PyTorch, imported when it is needed; and whether there is a GPU."""

from importlib import import_module
from typing import Any

from flagsplit.errors import ConfigError

EXTRA = "cuda"


def import_torch() -> Any:
    """The module `torch`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("torch")
    except ImportError:
        raise ConfigError(
            f"the cuda target needs torch, which is not installed; pip install 'flagsplit[{EXTRA}]'"
        ) from None


def require_gpu() -> None:
    """Say what is missing where there is no GPU.

    Raises:
        ConfigError: PyTorch was built without CUDA, or finds no GPU.
    """
    found = import_torch()
    if found.version.cuda is None:
        raise ConfigError(
            f"the cuda target needs PyTorch with CUDA, and torch {found.__version__} is built for the CPU; install one "
            "with CUDA, or build with --choice cuda.device=cpu to try the program on this host's CPU"
        )
    if not found.cuda.is_available():
        raise ConfigError(
            f"torch {found.__version__} finds no CUDA GPU: check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES; "
            "or build with --choice cuda.device=cpu to try the program on this host's CPU"
        )


class _Torch:
    """Stands for `torch` in lowerings, which say yes or no without it and compute with it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_torch(), name)


torch: Any = _Torch()
