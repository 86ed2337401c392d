"""`flagsplit decode-serve`: the loop of a generative model for phones that ran its encoder, token by token."""

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from flagsplit.apps.cli.common_options import Keys, Threads
from flagsplit.apps.cli.ending import ending, wait_for_end
from flagsplit.apps.cli.gateway_options import (
    AllowOrigin,
    ApiKeys,
    GatewayOptions,
    InsecurePublic,
    MaxUploadMb,
    ModelName,
    TlsCert,
    TlsKey,
)
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.cli.serve import LogLevel
from flagsplit.apps.decoder_service.bundle_source import open_source
from flagsplit.apps.decoder_service.gateway_beside import GatewayBeside
from flagsplit.apps.decoder_service.ray_settings import RaySettings
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings, EngineFactory, Provider, local_engine
from flagsplit.errors import ConfigError, PeerError
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
    threads: Threads = 0,
    provider: Annotated[
        Provider, typer.Option(help="What runs the steps: the CPU, an NVIDIA GPU, or ONNX Runtime on one.")
    ] = "cpu",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the steps, with --provider cuda.")
    ] = "fp16",
    kv_mb: Annotated[float, typer.Option(min=1, help="Memory for the caches of all streams, 10^6 bytes.")] = 1000,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams here at once, those that wait included.")] = 1024,
    max_streams_per_client: Annotated[
        int, typer.Option(min=0, help="The same of one client; 0 shares evenly among those that are connected.")
    ] = 0,
    max_wait_s: Annotated[float, typer.Option(min=0, help="A stream that would wait for longer is refused.")] = 60.0,
    drain_s: Annotated[float, typer.Option(min=0, help="How long streams may take once it is told to end.")] = 30.0,
    linger_s: Annotated[float, typer.Option(min=0, help="How long streams outlive their connection.")] = 10.0,
    keys: Keys = None,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz, /readyz, /stats there; port 0: a free one."),
    ] = "",
    trace_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append spans of requests, OTLP in JSON lines.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Logs for people or for programs.")] = "text",
    log_level: Annotated[LogLevel, typer.Option(help="debug logs every message with tensors.")] = "info",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Make tokens in this process, or in replicas of Ray Serve.")
    ] = "local",
    replicas: Annotated[int, typer.Option(min=0, help="With --engine ray: how many replicas there are; 0 is 2.")] = 0,
    max_replicas: Annotated[
        int, typer.Option(min=0, help="With --engine ray: how many there may be when streams queue up.")
    ] = 0,
    ray_address: Annotated[
        str, typer.Option(help="With --engine ray: the cluster to join, such as auto; starts one here without it.")
    ] = "",
    ray_name: Annotated[
        str, typer.Option(help="With --engine ray: name of the replicas in the cluster; who has it takes them over.")
    ] = "",
    gateway: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Answer clients of OpenAI's API and WebSockets there too.")
    ] = "",
    model_name: ModelName = "",
    api_keys: ApiKeys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure_public: InsecurePublic = False,
    allow_origin: AllowOrigin = None,
    max_upload_mb: MaxUploadMb = 26.2144,
    until_stdin_closes: Annotated[bool, typer.Option(help="End when standard input closes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Make tokens for clients until interrupted: once lets streams finish or go elsewhere, twice ends at once.

    Only clients whose keys are allowed are heard (flagsplit keys).
    """
    if engine == "local" and (replicas or max_replicas or ray_address or ray_name):
        raise ConfigError(
            "--replicas, --max-replicas, --ray-address and --ray-name are of --engine ray, came the local engine; add "
            "--engine ray, or start a decode-serve for each replica"
        )
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
        precision=precision,
        scheduler=SchedulerSettings(kv_bytes=int(kv_mb * 1e6), max_waiting=max_streams, max_wait_s=max_wait_s),
        service=ServiceSettings(
            machine, TelemetrySettings(http, trace_file, log=True), WorkerHooks(is_worker=store.is_worker)
        ),
        engine=_engine(engine, RaySettings(replicas or 2, max_replicas, slots, address=ray_address, name=ray_name)),
    )
    options = GatewayOptions(
        gateway, api_keys, tls_cert, tls_key, insecure_public, allow_origin or [], max_upload_mb, drain_s
    )
    page = options.settings() if gateway else None
    broken: list[Exception] = []
    with ending() as (ended, end):

        def failed(error: Exception) -> None:
            broken.append(error)
            end()

        service = DecoderService(source, ZmqChannel(security=store.security()), listen, settings, failed, end)
        beside: GatewayBeside | None = None
        try:
            beside = GatewayBeside(service, page, model_name) if page is not None else None
            _announce(service, tier, program, beside, as_json=as_json)
            if wait_for_end(ended, watch_stdin=until_stdin_closes):
                going_on = 1
                if beside is not None:
                    beside.finish(end)
                    going_on += 1
                service.drain()
                while going_on and not wait_for_end(ended, watch_stdin=until_stdin_closes):
                    going_on -= 1
        finally:
            if beside is not None:
                beside.close()
            service.stop()
    if broken:
        raise PeerError(f"the decoder service of tier {tier} broke: {broken[0]}")


def _engine(name: str, settings: RaySettings) -> EngineFactory:
    if name == "local":
        return local_engine
    from flagsplit.apps.decoder_service.ray_choice import ray_engine  # only here, because Ray is an extra

    return ray_engine(settings)


def _announce(service: DecoderService, tier: str, program: str, beside: GatewayBeside | None, *, as_json: bool) -> None:
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
        asked = {"gateway": beside.url} if beside is not None else {}
        print_json({**about, **asked, **({"http": streams.http} if streams.http else {})})
    else:
        watched = f", watched at {streams.http}" if streams.http else ""
        asked_at = f", and to clients of OpenAI's API at {beside.url}" if beside is not None else ""
        print(f"making tokens of {source.name} from {program} at {streams.address}{asked_at}{watched}", flush=True)
