"""`flagsplit swap`: send a new bundle to running workers, and retire the old one when all of them serve it.

With `--sla` the new bundle is the given one, built again under another policy (`flagsplit.apps.rebuild`).
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import Keys
from flagsplit.apps.cli.options import pairs, sla_file
from flagsplit.apps.cli.output import print_json, progress_bar
from flagsplit.apps.delivery import deliver
from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.bundle_swap import SwapMachine, SwapOptions
from flagsplit.splitter.sla import SLA
from flagsplit.transport.messages import PeerAddress

_DIGEST = re.compile("[0-9a-f]{64}")


def command(
    bundle: Annotated[Path, typer.Argument(help="The new bundle; with --sla the one to build again.")],
    tier: Annotated[list[str], typer.Option(metavar="TIER=tcp://HOST:PORT", help="Where a tier's worker listens.")],
    retire: Annotated[
        str,
        typer.Option(metavar="DIGEST|old", help="The bundle to retire then; old is what each has served for longest."),
    ] = "",
    patience_s: Annotated[float, typer.Option(min=1, help="Give up after so long without progress.")] = 60.0,
    sla: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Build the bundle again under this policy, and send that.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="With --sla: where to keep the new bundle.")
    ] = None,
    keys: Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Send a bundle to running workers and let them serve it beside the old one; no request fails meanwhile.

    All or nothing: if one worker refuses it, nothing is retired. The workers must have your key as an admin's.
    """
    if output is not None and sla is None:
        raise ConfigError("-o keeps a bundle that is built again: say under which policy with --sla")
    if retire not in ("", "old") and not _DIGEST.fullmatch(retire):
        # A worker that does not serve it has nothing to retire, and says that it is done.
        raise ConfigError(
            f"--retire expects old, or all 64 characters of a digest, as inspect --json says it; came {retire!r}"
        )
    opened = open_bundle(bundle)
    workers = _workers(opened, pairs("--tier", tier))
    if sla is not None:
        opened = _again(opened, sla, output, quiet=as_json)
    if retire == opened.digest:
        raise ConfigError("--retire names the new bundle; name the old one, or say old")
    show = not as_json and sys.stderr.isatty()
    options = SwapOptions(retire=retire, patience_s=patience_s)
    machine = deliver(opened, workers, keys, options, _show if show else lambda _: None)
    if show:
        print(file=sys.stderr)
    states = {name: state for name, (state, _, _) in machine.progress.items()}
    size_bytes = opened.path.stat().st_size
    if as_json:
        print_json({"bundle": opened.digest, "path": str(opened.path), "size_bytes": size_bytes, "tiers": states})
    else:
        done = "served by all, the old one is retired" if retire else "served by all"
        print(f"bundle {opened.digest[:12]} ({size_bytes} bytes) is {done}: {', '.join(states)}")


def _again(old: Bundle, sla: Path, output: Path | None, *, quiet: bool) -> Bundle:
    """The bundle built again, at `output` or in the cache."""
    from flagsplit.apps.rebuild import rebuild, rebuilt

    policy = sla_file(sla) or SLA()
    with progress_bar(quiet=quiet) as progress:
        if output is None:
            return rebuilt(old, policy, lambda place: rebuild(old, policy, place, progress=progress))
        return open_bundle(rebuild(old, policy, output, progress=progress).path)


def _workers(bundle: Bundle, given: dict[str, str]) -> dict[str, PeerAddress]:
    for name in given:
        if bundle.tier_index(name) == 0:
            raise ConfigError(f"--tier {name} is the tier that asks; name the others")
    return {name: PeerAddress(address) for name, address in given.items()}


def _show(machine: SwapMachine) -> None:
    parts = [
        f"{tier} {state}" + (f" {100 * done // max(1, size)} %" if state == "sending" else "")
        for tier, (state, done, size) in machine.progress.items()
    ]
    print(f"\r{'; '.join(parts):<79}", end="", file=sys.stderr, flush=True)
