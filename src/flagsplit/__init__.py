"""flagsplit: one neural network, split across phone, edge and cloud."""

from flagsplit._version import VERSION

__version__ = VERSION

__all__ = ["__version__"]
