"""Bringing a bundle to workers that run, and waiting until they serve it: over a channel of its own, on other threads.

What is said to the workers is up to `flagsplit.runtime.bundle_swap`. `flagsplit swap` and the sessions of
`flagsplit.connect` both come here.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from flagsplit.errors import ConfigError, PeerError, RefusedError
from flagsplit.runtime.background import in_background
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.bundle_swap import SwapMachine, SwapOptions
from flagsplit.runtime.bundle_upload import UploadFile
from flagsplit.runtime.events import Ended, Instruction
from flagsplit.runtime.shell import NoEngine, Shell
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

_LOOK_S = 0.2


def deliver(
    bundle: Bundle,
    workers: Mapping[str, PeerAddress],
    keys: Path | None = None,
    options: SwapOptions | None = None,
    look: Callable[[SwapMachine], None] = lambda _: None,
) -> SwapMachine:
    """Send a bundle to all of these workers, and retire another if the options say so. All or nothing.

    Args:
        bundle: what to send.
        workers: address of each worker, by tier.
        keys: the key folder; the user's own by default. The key must be an admin's at the workers.
        options: what to retire, and when to give up.
        look: is shown the machine now and then, and at the end.

    Returns:
        The machine at its end; its `progress` says how each worker stands.

    Raises:
        ConfigError: the file or an address is wrong, or no tier is named.
        RefusedError: a worker refused or made no progress; nothing is retired.
        PeerError: the sending itself broke.
    """
    if not workers:
        raise ConfigError("expected at least one worker to send the bundle to, came none")
    file = in_background(UploadFile.of, bundle.path, bundle.digest)
    channel = ZmqChannel(security=KeyStore(keys).security())
    machine = SwapMachine(file, workers, channel.instance, options)
    _run(machine, channel, look)
    if machine.error:
        raise RefusedError(machine.error)
    return machine


def _run(machine: SwapMachine, channel: ZmqChannel, look: Callable[[SwapMachine], None]) -> None:
    ended = threading.Event()
    broken: list[Exception] = []

    def tell(instruction: Instruction) -> None:
        if isinstance(instruction, Ended):
            ended.set()

    def failed(error: Exception) -> None:
        broken.append(error)
        ended.set()

    shell = Shell(machine, channel, NoEngine(), tell, failed, "flagsplit-swap")
    # Its threads encrypt all there is to send, and a session in this process may be asked meanwhile.
    in_background(shell.start, machine.start())
    try:
        while not ended.wait(_LOOK_S):
            look(machine)
        look(machine)
    finally:
        shell.stop()
    if broken:
        raise PeerError(f"the swap broke: {broken[0]}")
