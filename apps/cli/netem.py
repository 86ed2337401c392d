"""`flagsplit netem`: an emulated link in front of an address, for whatever talks TCP."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flagsplit.apps.cli.ending import Ending, ending
from flagsplit.apps.cli.open_files import allow_many_open_files
from flagsplit.apps.cli.output import print_json, rate_text, size_text
from flagsplit.errors import ConfigError
from flagsplit.transport.address import parse_address
from flagsplit.transport.emulation import (
    PROFILES,
    LinkProfile,
    LinkShape,
    LinkState,
    Script,
    ShapingProxy,
    Trace,
    emulated_link,
    load_script,
    load_trace,
    parse_profile,
)

_LONG_S = 3600.0


def command(
    to: Annotated[str, typer.Option(help="Where what comes out of the link goes, tcp://HOST:PORT.")],
    listen: Annotated[str, typer.Option(help="Where to listen; port 0 takes a free one.")] = "tcp://127.0.0.1:0",
    profile: Annotated[str, typer.Option(help=f"How the link is, by name: {', '.join(PROFILES)}.")] = "",
    link: Annotated[str, typer.Option(help="How it is, BW/RTT[/JITTER][/LOSS%], such as 20mbit/50ms/8ms/0.5%.")] = "",
    trace: Annotated[Path | None, typer.Option(help="A trace of its bandwidth, CSV or mahimahi; replayed.")] = None,
    script: Annotated[Path | None, typer.Option(help="What happens to it, a JSON file; docs/emulation.md.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    for_s: Annotated[float | None, typer.Option("--for", min=0, help="End after so many seconds.")] = None,
    verbose: Annotated[bool, typer.Option(help="A line a second, even if nobody is at the terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON objects, one on a line.")] = False,
) -> None:
    """Emulate a network link until interrupted: connections to it are carried to an address, slowly or not at all."""
    allow_many_open_files()
    start, events = _link(profile, link, trace, script)
    if for_s is not None and not math.isfinite(for_s):
        raise ConfigError(f"--for expects seconds, came {for_s}")
    place = parse_address(listen, listening=True)
    if place.port is None:
        raise ConfigError(f"--listen expects tcp://HOST:PORT, came {listen!r}")
    host = "0.0.0.0" if place.host_or_path == "*" else place.host_or_path  # noqa: S104 - the user asked for it
    until = None if for_s is None else time.monotonic() + for_s
    with (
        ending("the emulated link") as end,
        emulated_link(to, start, seed, script=events, listen=(host, place.port)) as proxy,
    ):
        if as_json:
            print_json({"address": proxy.address, "to": to, "seed": seed, "pid": os.getpid()})
        else:
            print(f"emulating a link to {to} at {proxy.address}", flush=True)
        _watch(proxy, end, until, as_json=as_json, talks=verbose or sys.stdout.isatty())


def _link(
    profile: str, link: str, trace: Path | None, script: Path | None
) -> tuple[LinkProfile | Trace | Script, Script | None]:
    """How the link is, and what happens to it besides."""
    given = [name for name, value in (("--profile", profile), ("--link", link), ("--trace", trace)) if value]
    if len(given) > 1:
        raise ConfigError(f"expected one of --profile, --link and --trace, came {' and '.join(given)}")
    if profile and profile not in PROFILES:
        raise ConfigError(f"--profile expects one of {', '.join(PROFILES)}, came {profile!r}")
    events = None if script is None else load_script(script)
    if trace is not None:
        return load_trace(trace), events
    if profile or link:
        return parse_profile(profile or link), events
    if events is None:
        raise ConfigError("expected how the link is: --profile, --link, --trace or --script")
    return events, None


def _watch(proxy: ShapingProxy, end: Ending, until: float | None, *, as_json: bool, talks: bool) -> None:
    """Say a line a second until it is over, then what was carried in all."""
    started = seen_at = time.monotonic()
    before = proxy.state
    while not _is_over(end, until, 1.0 if talks else _LONG_S):
        if not talks:
            continue
        now, state = time.monotonic(), proxy.state
        if as_json:
            print_json(_data(state, now - started))
        else:
            print(_line(before, state, now - seen_at), flush=True)
        before, seen_at = state, now
    state = proxy.state
    if as_json:
        print_json({**_data(state, time.monotonic() - started), "over": True})
    else:
        print("carried {} up, {} down".format(*map(size_text, state.carried_bytes)), flush=True)


def _is_over(end: Ending, until: float | None, wait_s: float) -> bool:
    """Wait so long at most; whether a signal came or the time is over."""
    if until is not None:
        wait_s = min(wait_s, max(0.0, until - time.monotonic()))
    return end.came(wait_s) or (until is not None and time.monotonic() >= until)


def _data(state: LinkState, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "up_bytes": state.carried_bytes[0],
        "down_bytes": state.carried_bytes[1],
        "connections": state.connections,
        "faults": list(state.faults),
        "up": _shape_data(state.up),
        "down": _shape_data(state.down),
    }


def _shape_data(shape: LinkShape) -> dict[str, float]:
    """A shape; a rate without limit becomes null."""
    return {
        "mbit": shape.bytes_per_s * 8 / 1e6,
        "delay_ms": shape.delay_s * 1e3,
        "jitter_ms": shape.jitter_s * 1e3,
        "loss": shape.loss,
    }


def _line(before: LinkState, state: LinkState, seconds: float) -> str:
    parts = []
    shapes = (state.up, state.down)
    for name, then, now, shape in zip(("up", "down"), before.carried_bytes, state.carried_bytes, shapes, strict=True):
        rate = rate_text((now - then) * 8 / seconds, "bit/s")
        limit = "" if shape.bytes_per_s == math.inf else f" of {rate_text(shape.bytes_per_s * 8, 'bit/s')}"
        parts.append(f"{name} {size_text(now)}, {rate}{limit}")
    parts.append(f"{state.connections} connection{'' if state.connections == 1 else 's'}")
    return "; ".join([*parts, *state.faults])
