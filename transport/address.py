"""Addresses that channels accept: `tcp://HOST:PORT` and `ipc://PATH`.

One parser for channels and the key store, so that every bad address gets the same clear line.
"""

import re
from dataclasses import dataclass

from flagsplit.errors import ConfigError

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+|\*):(?P<port>\*|[0-9]{1,5})")
# sun_path holds 108 bytes on Linux and 104 on macOS, with the final zero.
_MAX_IPC_PATH_BYTES = 103


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address; `port` is None for ipc."""

    scheme: str
    host_or_path: str
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_or_path}" + ("" if self.port is None else f":{self.port}")

    @property
    def endpoint(self) -> str:
        """What ZeroMQ wants: its wildcard port is `*`, not 0."""
        return str(self) if self.port != 0 else f"tcp://{self.host_or_path}:*"


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Parse and check an address to connect to, or to listen on (port 0 or `*` and host `*` then mean "any").

    Raises ConfigError that shows the forms allowed.
    """
    if text.startswith("ipc://"):
        return _parse_ipc(text)
    match = _TCP.fullmatch(text)
    if match is None:
        raise ConfigError(f"address {text!r}: expected tcp://HOST:PORT or ipc://PATH")
    host, port_text = match["host"], match["port"]
    port = 0 if port_text == "*" else int(port_text)
    if port > 65535:
        raise ConfigError(f"address {text!r}: expected a port up to 65535, got {port}")
    if not listening and (port == 0 or host == "*"):
        raise ConfigError(
            f"address {text!r}: a wildcard can be listened on, not connected to; name the host and the port"
        )
    return Address("tcp", host.lower(), port)


def _parse_ipc(text: str) -> Address:
    path = text.removeprefix("ipc://")
    if not path or "\0" in path or path == "*":
        raise ConfigError(f"address {text!r}: expected ipc://PATH with the path of a socket file")
    if len(path.encode()) > _MAX_IPC_PATH_BYTES:
        raise ConfigError(
            f"address {text!r}: the path takes {len(path.encode())} bytes, at most {_MAX_IPC_PATH_BYTES} work"
        )
    return Address("ipc", path)
