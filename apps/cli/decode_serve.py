"""`flagsplit decode-serve`: the loop of a generative model for phones that ran its encoder, token by token."""

import os
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import Keys, Threads
from flagsplit.apps.cli.decode_options import (
    DrainStreams,
    Engine,
    EngineOptions,
    KvMb,
    LingerStreams,
    MaxReplicas,
    MaxStreams,
    MaxStreamsPerClient,
    MaxWaitS,
    Plan,
    Precision,
    RayAddress,
    RayName,
    Replicas,
    Slots,
    StepProvider,
)
from flagsplit.apps.cli.ending import Ending, ending
from flagsplit.apps.cli.gateway_options import (
    AllowOrigin,
    ApiKeys,
    InsecurePublic,
    MaxUploadMb,
    ModelName,
    TlsCert,
    TlsKey,
    gateway_settings,
)
from flagsplit.apps.cli.open_files import allow_many_open_files
from flagsplit.apps.cli.output import print_json
from flagsplit.apps.cli.service_options import (
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
from flagsplit.apps.decoder_service.bundle_source import open_source
from flagsplit.apps.decoder_service.gateway_beside import GatewayBeside
from flagsplit.apps.decoder_service.serve import DecoderService, DecoderSettings
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.service import ServiceSettings
from flagsplit.runtime.telemetry.settings import TelemetrySettings
from flagsplit.runtime.worker_machine import WorkerHooks, WorkerOptions
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel


def command(
    program: Annotated[
        str, typer.Argument(metavar="BUNDLE|FOLDER|zoo:NAME", help="A bundle of a program, or a program itself.")
    ],
    listen: Listen,
    tier: Tier = "cloud",
    plan: Plan = "",
    slots: Slots = 16,
    threads: Threads = 0,
    provider: StepProvider = "cpu",
    precision: Precision = "fp16",
    kv_mb: KvMb = 1000,
    max_streams: MaxStreams = 1024,
    max_streams_per_client: MaxStreamsPerClient = 0,
    max_wait_s: MaxWaitS = 60.0,
    drain_s: DrainStreams = 30.0,
    linger_s: LingerStreams = 10.0,
    keys: Keys = None,
    http: Http = "",
    trace_file: TraceFile = None,
    log_format: LogForm = "text",
    log_level: LogLevel = "info",
    engine: Engine = "local",
    replicas: Replicas = 0,
    max_replicas: MaxReplicas = 0,
    ray_address: RayAddress = "",
    ray_name: RayName = "",
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
    until_stdin_closes: UntilStdinCloses = False,
    as_json: JsonWhenReady = False,
) -> None:
    """Make tokens for clients until interrupted: once lets streams finish or go elsewhere, twice ends at once.

    Only clients whose keys are allowed are heard (flagsplit keys).
    """
    make_engine = EngineOptions(engine, replicas, max_replicas, ray_address, ray_name).factory(slots)
    allow_many_open_files()
    start_logging(log_format, log_level)
    store = KeyStore(keys)
    machine = WorkerOptions(
        max_flights=max_streams,
        max_flights_per_client=max_streams_per_client or None,
        max_bundle_bytes=0,
        drain_s=drain_s,
        linger_s=linger_s,
    )
    telemetry, hooks = TelemetrySettings(http, trace_file, log=True), WorkerHooks(is_worker=store.is_worker)
    settings = DecoderSettings(
        tier=tier,
        slots=slots,
        threads=threads,
        provider=provider,
        precision=precision,
        scheduler=SchedulerSettings(kv_bytes=int(kv_mb * 1e6), max_waiting=max_streams, max_wait_s=max_wait_s),
        service=ServiceSettings(machine, telemetry, hooks),
        engine=make_engine,
    )
    source = open_source(program, tier, plan)
    page = gateway_settings(
        gateway,
        api_keys=api_keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure_public=insecure_public,
        allow_origin=allow_origin,
        max_upload_mb=max_upload_mb,
        drain_s=drain_s,
    )
    with ending(f"the decoder service of tier {tier}", watch_stdin=until_stdin_closes) as end:
        service = DecoderService(source, ZmqChannel(security=store.security()), listen, settings, end.fail, end.end)
        beside: GatewayBeside | None = None
        try:
            beside = GatewayBeside(service, page, model_name) if gateway else None
            _announce(service, tier, program, beside, as_json=as_json)
            if end.wait():
                _finish(service, beside, end)
        finally:
            if beside is not None:
                beside.close()
            service.stop()


def _finish(service: DecoderService, beside: GatewayBeside | None, end: Ending) -> None:
    """Let streams finish, and requests of the gateway; each ends one wait, and a signal ends all."""
    if beside is not None:
        beside.finish(end.end)
    service.drain()
    if not end.wait() and beside is not None:
        end.wait()


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
