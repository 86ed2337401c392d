"""`flagsplit swap`: send a new bundle to running workers, and retire the old one when all of them serve it."""

import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.options import pairs
from flagsplit.apps.cli.output import print_json
from flagsplit.errors import ConfigError, PeerError, RefusedError
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.bundle_swap import SwapMachine, SwapOptions
from flagsplit.runtime.bundle_upload import UploadFile
from flagsplit.runtime.events import Ended, Instruction
from flagsplit.runtime.shell import NoEngine, Shell
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

_LOOK_S = 0.2


def command(
    bundle: Annotated[Path, typer.Argument(help="The new bundle.")],
    tier: Annotated[list[str], typer.Option(metavar="TIER=tcp://HOST:PORT", help="Where a tier's worker listens.")],
    retire: Annotated[
        str,
        typer.Option(metavar="DIGEST|old", help="The bundle to retire then; old is what each has served for longest."),
    ] = "",
    patience_s: Annotated[float, typer.Option(min=1, help="Give up after so long without progress.")] = 60.0,
    keys: Annotated[Path | None, typer.Option(help="The key folder; by default under ~/.config/flagsplit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Send a bundle to running workers and let them serve it beside the old one; no request fails meanwhile.

    All or nothing: if one worker refuses it, nothing is retired. The workers must have your key as an admin's.
    """
    opened = open_bundle(bundle)
    workers = _workers(opened, pairs("--tier", tier))
    if retire == opened.digest:
        raise ConfigError("--retire names the new bundle; name the old one, or say old")
    file = UploadFile.of(bundle, opened.digest)
    channel = ZmqChannel(security=KeyStore(keys).security())
    machine = SwapMachine(file, workers, channel.instance, SwapOptions(retire=retire, patience_s=patience_s))
    _run(machine, channel, show=not as_json and sys.stderr.isatty())
    states = {name: state for name, (state, _, _) in machine.progress.items()}
    if machine.error:
        raise RefusedError(machine.error)
    if as_json:
        print_json({"bundle": opened.digest, "size_bytes": file.size_bytes, "tiers": states})
    else:
        done = "served by all, the old one is retired" if retire else "served by all"
        print(f"bundle {opened.digest[:12]} ({file.size_bytes} bytes) is {done}: {', '.join(states)}")


def _workers(bundle: Bundle, given: dict[str, str]) -> dict[str, PeerAddress]:
    for name in given:
        if bundle.tier_index(name) == 0:
            raise ConfigError(f"--tier {name} is the tier that asks; name the others")
    return {name: PeerAddress(address) for name, address in given.items()}


def _run(machine: SwapMachine, channel: ZmqChannel, *, show: bool) -> None:
    ended = threading.Event()
    broken: list[Exception] = []

    def tell(instruction: Instruction) -> None:
        if isinstance(instruction, Ended):
            ended.set()

    def failed(error: Exception) -> None:
        broken.append(error)
        ended.set()

    shell = Shell(machine, channel, NoEngine(), tell, failed, "flagsplit-swap")
    shell.start(machine.start())
    try:
        while not ended.wait(_LOOK_S):
            if show:
                _show(machine)
        if show:
            _show(machine)
            print(file=sys.stderr)
    finally:
        shell.stop()
    if broken:
        raise PeerError(f"the swap broke: {broken[0]}")


def _show(machine: SwapMachine) -> None:
    parts = [
        f"{tier} {state}" + (f" {100 * done // max(1, size)} %" if state == "sending" else "")
        for tier, (state, done, size) in machine.progress.items()
    ]
    print(f"\r{'; '.join(parts):<79}", end="", file=sys.stderr, flush=True)
