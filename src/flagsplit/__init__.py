"""flagsplit: one neural network, split across phone, edge and cloud."""

from flagsplit._version import VERSION as __version__

__all__ = ["__version__"]
