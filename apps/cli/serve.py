"""`flagsplit serve`: a worker for one tier of a bundle."""

import logging
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from flagsplit.apps.cli.options import pairs
from flagsplit.apps.cli.output import print_json
from flagsplit.errors import ConfigError, PeerError
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.telemetry.logs import LogFormat, configure
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.address import parse_address
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

LogLevel = Literal["debug", "info", "warning"]


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    tier: Annotated[str, typer.Option(help="The tier to serve.")],
    listen: Annotated[str, typer.Option(help="Where to listen, tcp://HOST:PORT; port 0 takes a free one.")],
    beyond: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=tcp://HOST:PORT", help="A tier beyond, if sessions name it differently."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 lets it choose.")] = 0,
    memory_mb: Annotated[float, typer.Option(min=1, help="Memory for loaded segments, 10^6 bytes.")] = 8000,
    slowdown: Annotated[float, typer.Option(help="Emulate a device so many times as slow.")] = 1.0,
    keys: Annotated[Path | None, typer.Option(help="The key folder; by default under ~/.config/flagsplit.")] = None,
    until_stdin_closes: Annotated[bool, typer.Option(help="End when standard input closes.")] = False,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz, /readyz, /stats there; port 0: a free one."),
    ] = "",
    trace_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append spans of requests, OTLP in JSON lines.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Logs for people or for programs.")] = "text",
    log_level: Annotated[LogLevel, typer.Option(help="debug logs every message with tensors.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Serve one tier until interrupted. Only clients whose keys are allowed are heard (flagsplit keys)."""
    configure(log_format, logging.getLevelNamesMapping()[log_level.upper()])
    opened = open_bundle(bundle)
    index = opened.tier_index(tier)
    if index == 0:
        raise ConfigError(f"tier {tier} is the one that asks and runs inside the session; serve one of the others")
    settings = WorkerSettings(
        memory_budget_bytes=memory_mb * 1e6,
        host=LoadOptions(threads=threads),
        beyond=_beyond(opened, index, pairs("--beyond", beyond)),
        slowdown=slowdown,
        telemetry=TelemetrySettings(http, trace_file, log=True),
    )
    broken: list[Exception] = []
    channel = ZmqChannel(security=KeyStore(keys).security())
    with _ending() as (ended, end):

        def failed(error: Exception) -> None:
            broken.append(error)
            end()

        worker = Worker(opened, index, channel, listen, settings, failed)
        try:
            if as_json:
                ready = {"tier": tier, "address": worker.address, "bundle": opened.digest, "pid": os.getpid()}
                print_json({**ready, **({"http": worker.http} if worker.http else {})})
            else:
                watched = f", watched at {worker.http}" if worker.http else ""
                print(f"serving tier {tier} of {bundle} at {worker.address}{watched}", flush=True)
            _wait(ended, watch_stdin=until_stdin_closes)
        finally:
            worker.stop()
    if broken:
        raise PeerError(f"the worker for tier {tier} broke: {broken[0]}")


def _beyond(bundle: Bundle, index: int, given: Mapping[str, str]) -> dict[str, PeerAddress]:
    for name, address in given.items():
        if bundle.tier_index(name) <= index:
            raise ConfigError(f"--beyond {name}: expected a tier farther away than {bundle.tiers[index]}")
        parse_address(address)
    return {name: PeerAddress(address) for name, address in given.items()}


@contextmanager
def _ending() -> Iterator[tuple[int, Callable[[], None]]]:
    """What becomes readable when SIGINT or SIGTERM comes, and a function that makes it so too.

    An event would not do: a signal just before the wait for it would be noticed only when something else ends the wait.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def end() -> None:
        os.write(writing, b"\0")

    try:
        yield reading, end
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _wait(ended: int, *, watch_stdin: bool) -> None:
    watched = [ended, 0] if watch_stdin else [ended]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if ended in ready or not os.read(0, 4096):
            return
