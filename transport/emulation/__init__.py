"""Slow and broken networks on one host, without privileges: a proxy in user space that shapes what it carries.

    proxy.py   what it offers        carrier.py    the bytes through it      pacer.py   when each comes out

How to use it, and what it does not emulate, is in `docs/emulation.md`.
"""

from flagsplit.transport.emulation.pacer import LinkShape
from flagsplit.transport.emulation.proxy import ShapingProxy

__all__ = ["LinkShape", "ShapingProxy"]
