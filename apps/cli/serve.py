"""`flagsplit serve`: a worker for one tier of some bundles."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import Keys, Threads
from flagsplit.apps.cli.ending import ending
from flagsplit.apps.cli.open_files import allow_many_open_files
from flagsplit.apps.cli.options import pairs
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.cli.service_options import (
    DrainRequests,
    Http,
    JsonWhenReady,
    Listen,
    LogForm,
    LogLevel,
    Tier,
    TraceFile,
    UntilStdinCloses,
    start_logging,
)
from flagsplit.errors import ConfigError
from flagsplit.runtime.batching import BatchOptions
from flagsplit.runtime.bundle import REFERENCE_TARGET, Bundle, open_bundle
from flagsplit.runtime.residency import ModeChoice
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.address import parse_address
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel


def command(
    tier: Tier,
    listen: Listen,
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="The bundles; none waits for flagsplit swap.")
    ] = None,
    beyond: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=tcp://HOST:PORT", help="A tier beyond, if sessions name it differently."),
    ] = None,
    threads: Threads = 0,
    target: Annotated[str, typer.Option(help="Which of the tier's artifacts to run; ONNX Runtime's by default.")] = "",
    memory_mb: Annotated[float, typer.Option(min=1, help="Memory for loaded segments, 10^6 bytes.")] = 8000,
    slowdown: Annotated[float, typer.Option(help="Emulate a device so many times as slow.")] = 1.0,
    drain_s: DrainRequests = 30.0,
    linger_s: Annotated[float, typer.Option(min=0, help="How long requests outlive their connection.")] = 10.0,
    max_bundle_mb: Annotated[
        float, typer.Option(min=0, help="Largest bundle that may be sent here, 10^6 bytes; 0 takes none.")
    ] = 4295,
    keys: Keys = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Small requests that may run together.")] = 1,
    batch_wait_ms: Annotated[float, typer.Option(min=0, help="How long one waits for others to run with.")] = 2.0,
    residency: Annotated[ModeChoice, typer.Option(help="How pooled plans are held in memory.")] = "auto",
    http: Http = "",
    trace_file: TraceFile = None,
    log_format: LogForm = "text",
    log_level: LogLevel = "info",
    until_stdin_closes: UntilStdinCloses = False,
    as_json: JsonWhenReady = False,
) -> None:
    """Serve one tier until interrupted: once lets it finish what it has, twice ends it at once.

    Only clients whose keys are allowed are heard, and only those with the right to may send bundles (flagsplit keys).
    """
    allow_many_open_files()
    start_logging(log_format, log_level)
    opened = [open_bundle(path) for path in bundles or ()]
    host = LoadOptions(threads=threads, target=target)
    _try_out(opened, tier, host)
    store = KeyStore(keys)
    settings = WorkerSettings(
        memory_budget_bytes=memory_mb * 1e6,
        host=host,
        machine=WorkerOptions(drain_s=drain_s, linger_s=linger_s, max_bundle_bytes=int(max_bundle_mb * 1e6)),
        beyond=_beyond(opened, tier, pairs("--beyond", beyond)),
        slowdown=slowdown,
        residency=residency,
        batching=BatchOptions(max_batch, batch_wait_ms / 1e3),
        telemetry=TelemetrySettings(http, trace_file, log=True),
        hooks=WorkerHooks(is_admin=store.is_admin, is_worker=store.is_worker),
    )
    with ending(f"the worker for tier {tier}", watch_stdin=until_stdin_closes) as end:
        worker = Worker(opened, tier, ZmqChannel(security=store.security()), listen, settings, end.fail, end.end)
        try:
            _announce(worker, opened, bundles or [], as_json=as_json)
            if end.wait():
                worker.drain()
                end.wait()
        finally:
            worker.stop()


def _try_out(bundles: Sequence[Bundle], tier: str, host: LoadOptions) -> None:
    """Load the lightest segment of each bundle, if an engine runs it that hosts may lack.

    A worker that cannot run its artifacts ends with the reason. Sessions would not tell: they go on with another tier.
    """
    for bundle in bundles:
        index = bundle.tier_index(tier)
        for made in bundle.facts.tiers[index].artifacts:
            plain = made.target == REFERENCE_TARGET and "provider" not in made.options
            emulated = get_target(made.target).describe().runs_here == "emulated"
            if made.target == (host.target or REFERENCE_TARGET) and made.entries and not plain and not emulated:
                lightest = min(made.entries, key=lambda part: made.weight_bytes.get(part, 0))
                bundle.load(index, lightest, host).close()


def _announce(worker: Worker, opened: Sequence[Bundle], paths: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        digests = [bundle.digest for bundle in opened]
        about = {"tier": worker.tier, "address": worker.address, "bundle": next(iter(digests), ""), "bundles": digests}
        print_json({**about, "pid": os.getpid(), **({"http": worker.http} if worker.http else {})})
    else:
        what = ", ".join(map(str, paths)) or "no bundle yet"
        watched = f", watched at {worker.http}" if worker.http else ""
        print(f"serving tier {worker.tier} of {what} at {worker.address}{watched}", flush=True)


def _beyond(bundles: Sequence[Bundle], tier: str, given: Mapping[str, str]) -> dict[str, PeerAddress]:
    for name, address in given.items():
        for bundle in bundles:
            if name in bundle.tiers and bundle.tier_index(name) <= bundle.tier_index(tier):
                raise ConfigError(f"--beyond {name}: expected a tier farther away than {tier}")
        if bundles and all(name not in bundle.tiers for bundle in bundles):
            bundles[0].tier_index(name)
        parse_address(address)
    return {name: PeerAddress(address) for name, address in given.items()}
