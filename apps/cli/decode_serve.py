"""`flagsplit decode-serve`: the loop of a generative model for phones that ran its encoder, token by token."""

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from flagsplit.apps.cli.ending import ending, wait_for_end
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.cli.serve import LogLevel
from flagsplit.apps.decoder_service.bundle_source import open_source
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.errors import PeerError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.service import ServiceSettings
from flagsplit.runtime.telemetry.logs import LogFormat, configure
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel


def command(
    program: Annotated[
        str, typer.Argument(metavar="BUNDLE|FOLDER|zoo:NAME", help="A bundle of a program, or a program itself.")
    ],
    listen: Annotated[str, typer.Option(help="Where to listen, tcp://HOST:PORT; port 0 takes a free one.")],
    tier: Annotated[str, typer.Option(help="The tier to serve.")] = "cloud",
    plan: Annotated[
        str, typer.Option(help="Serve this plan of the bundle alone; needed for one that divides a decoder's layers.")
    ] = "",
    slots: Annotated[int, typer.Option(min=1, help="Streams that make tokens at the same time.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 lets it choose.")] = 0,
    provider: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the steps run.")] = "cpu",
    kv_mb: Annotated[float, typer.Option(min=1, help="Memory for the caches of all streams, 10^6 bytes.")] = 1000,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams here at once, those that wait included.")] = 1024,
    max_streams_per_client: Annotated[
        int, typer.Option(min=0, help="The same of one client; 0 shares evenly among those that are connected.")
    ] = 0,
    max_wait_s: Annotated[float, typer.Option(min=0, help="A stream that would wait for longer is refused.")] = 60.0,
    drain_s: Annotated[float, typer.Option(min=0, help="How long streams may take once it is told to end.")] = 30.0,
    linger_s: Annotated[float, typer.Option(min=0, help="How long streams outlive their connection.")] = 10.0,
    keys: Annotated[Path | None, typer.Option(help="The key folder; by default under ~/.config/flagsplit.")] = None,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz, /readyz, /stats there; port 0: a free one."),
    ] = "",
    trace_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append spans of requests, OTLP in JSON lines.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Logs for people or for programs.")] = "text",
    log_level: Annotated[LogLevel, typer.Option(help="debug logs every message with tensors.")] = "info",
    until_stdin_closes: Annotated[bool, typer.Option(help="End when standard input closes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Make tokens for clients until interrupted: once lets streams finish or go elsewhere, twice ends at once.

    Only clients whose keys are allowed are heard (flagsplit keys).
    """
    configure(log_format, logging.getLevelNamesMapping()[log_level.upper()])
    source = open_source(program, tier, plan)
    store = KeyStore(keys)
    machine = WorkerOptions(
        max_flights=max_streams,
        max_flights_per_client=max_streams_per_client or None,
        max_bundle_bytes=0,
        drain_s=drain_s,
        linger_s=linger_s,
    )
    settings = DecoderSettings(
        tier=tier,
        slots=slots,
        threads=threads,
        provider=provider,
        scheduler=SchedulerSettings(kv_bytes=int(kv_mb * 1e6), max_waiting=max_streams, max_wait_s=max_wait_s),
        service=ServiceSettings(
            machine, TelemetrySettings(http, trace_file, log=True), WorkerHooks(is_worker=store.is_worker)
        ),
    )
    broken: list[Exception] = []
    with ending() as (ended, end):

        def failed(error: Exception) -> None:
            broken.append(error)
            end()

        service = DecoderService(source, ZmqChannel(security=store.security()), listen, settings, failed, end)
        try:
            _announce(service, tier, program, as_json=as_json)
            if wait_for_end(ended, watch_stdin=until_stdin_closes):
                service.drain()
                wait_for_end(ended, watch_stdin=until_stdin_closes)
        finally:
            service.stop()
    if broken:
        raise PeerError(f"the decoder service of tier {tier} broke: {broken[0]}")


def _announce(service: DecoderService, tier: str, program: str, *, as_json: bool) -> None:
    source, streams = service.source, service.streams
    if as_json:
        about = {
            "tier": tier,
            "address": streams.address,
            "program": source.name,
            "bundle": source.digest,
            "plans": {plan: list(names) for plan, names in source.cuts.items()},
            "pid": os.getpid(),
        }
        print_json({**about, **({"http": streams.http} if streams.http else {})})
    else:
        watched = f", watched at {streams.http}" if streams.http else ""
        print(f"making tokens of {source.name} from {program} at {streams.address}{watched}", flush=True)
