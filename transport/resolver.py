"""Host names become addresses in a thread of their own.

libzmq would look them up in the thread that moves everybody's bytes, and one slow name server would stall every peer.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable

from flagsplit.transport.address import Address


class Resolution:
    """One look-up. `endpoints` is None until it is over; then empty means that it failed, and `error` says how."""

    def __init__(self, address: Address, on_done: Callable[[], None]) -> None:
        self.error = ""
        self.endpoints: list[str] | None = None
        if address.port is None or _is_numeric(address.host_or_path):
            self.endpoints = [address.endpoint]
            return
        # Daemon and never joined: getaddrinfo cannot be interrupted, and an answer for nobody does no harm.
        threading.Thread(target=self._run, args=(address, on_done), name="flagsplit-resolve", daemon=True).start()

    def _run(self, address: Address, on_done: Callable[[], None]) -> None:
        try:
            found = socket.getaddrinfo(address.host_or_path, address.port, type=socket.SOCK_STREAM)
            hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
            self.endpoints = [f"tcp://[{h}]:{address.port}" if ":" in h else f"tcp://{h}:{address.port}" for h in hosts]
        except (OSError, UnicodeError) as exc:
            self.error = f"cannot resolve {address.host_or_path}: {exc}"
            self.endpoints = []
        on_done()


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
