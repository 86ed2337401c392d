"""Binding a ROUTER to an address: what libzmq would do silently is refused, and what it refuses is explained.

Used by `zeromq_inbound.py`; how addresses look is in `address.py`.
"""

import errno
import re
import socket as sockets
import stat
from pathlib import Path
from typing import Final, cast

import zmq

from flagsplit.errors import ConfigError
from flagsplit.transport.address import parse_address
from flagsplit.transport.zeromq_sockets import Socket

_MAPPED_IPV4: Final = re.compile(r"\[::ffff:([0-9.]+)\]")


def bind_router(router: Socket, address: str) -> str:
    """Listen on an address; the one really bound comes back. Raises ConfigError when it cannot be."""
    wanted = parse_address(address, listening=True)
    if wanted.scheme == "ipc":
        _refuse_taken_path(Path(wanted.host_or_path), address)
    try:
        router.bind(wanted.endpoint)
    except zmq.ZMQError as exc:
        raise ConfigError(f"cannot listen on {address}: {_bind_advice(exc)}") from exc
    if wanted.scheme == "ipc":
        Path(wanted.host_or_path).chmod(0o600)
    bound = cast("bytes", router.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
    return _MAPPED_IPV4.sub(r"\1", bound)


def _bind_advice(exc: zmq.ZMQError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "the port is taken by another process; stop it, or choose another port (0 takes a free one)"
    if exc.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return "this host has no such address; name one of its own, or * for all"
    if exc.errno == errno.EACCES:
        return "permission denied; choose a port above 1023, or a folder that you may write to"
    return str(exc.strerror)


def _refuse_taken_path(path: Path, address: str) -> None:
    # libzmq would delete whatever is there, a live socket of another process too.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {address}: {path} exists and is not a socket; choose another path")
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(str(path)) == 0:
            raise ConfigError(f"cannot listen on {address}: another process listens there; choose another path")
