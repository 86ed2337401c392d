"""`flagsplit gateway`: OpenAI's pages and a WebSocket, in front of decoder services."""

import os
from typing import Annotated, Any

import typer

from flagsplit.apps.cli.common_options import Cloud, Keys
from flagsplit.apps.cli.ending import ending
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
    DrainRequests,
    JsonWhenReady,
    LogForm,
    LogLevel,
    UntilStdinCloses,
    start_logging,
)
from flagsplit.apps.decoder_service.bundle_source import open_source
from flagsplit.errors import ConfigError


def command(
    program: Annotated[str, typer.Argument(help="What the services serve: a bundle, a program's folder, or zoo:NAME.")],
    cloud: Cloud,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:8000",
    tier: Annotated[str, typer.Option(help="The tier that the services serve.")] = "cloud",
    model_name: ModelName = "",
    api_keys: ApiKeys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure_public: InsecurePublic = False,
    allow_origin: AllowOrigin = None,
    max_upload_mb: MaxUploadMb = 26.2144,
    drain_s: DrainRequests = 30.0,
    max_wait_s: Annotated[
        float, typer.Option(min=0.1, help="Refuse a stream that has not begun after so long.")
    ] = 20.0,
    keys: Keys = None,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there too; port 0: a free one."),
    ] = "",
    log_format: LogForm = "text",
    log_level: LogLevel = "info",
    until_stdin_closes: UntilStdinCloses = False,
    as_json: JsonWhenReady = False,
) -> None:
    """Let clients of OpenAI's API, and web pages, ask decoder services, until interrupted.

    Once lets requests that are in hand finish, twice ends at once.
    """
    from flagsplit.apps.decoder_service.gateway import Gateway, require_aiohttp
    from flagsplit.apps.decoder_service.gateway_opening import open_backend, whole_input
    from flagsplit.apps.decoder_service.gateway_pages import watch_gateway
    from flagsplit.apps.decoder_service.gateway_source import ClientSource
    from flagsplit.runtime.generation.client import ClientSettings, StreamClient

    allow_many_open_files()
    start_logging(log_format, log_level)
    require_aiohttp()
    addresses = [each.strip() for each in cloud.split(",") if each.strip()]
    if not addresses:
        raise ConfigError("--cloud expects addresses such as tcp://cloud.example:5555, came none")
    settings = gateway_settings(
        listen,
        api_keys=api_keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure_public=insecure_public,
        allow_origin=allow_origin,
        max_upload_mb=max_upload_mb,
        drain_s=drain_s,
    )
    source = open_source(program, tier)
    with (
        ending("the gateway", watch_stdin=until_stdin_closes) as end,
        StreamClient(addresses, source.digest, settings=ClientSettings(tier=tier, keys=keys)) as client,
    ):
        tokens = ClientSource(client, whole_input(source), max_wait_s)
        backend = open_backend(source, tokens, model_name)
        gateway = Gateway([backend], settings)
        pages = watch_gateway(gateway, backend, http) if http else None
        try:
            about = {"url": gateway.url, "model": backend.facts.name, "bundle": source.digest, "pid": os.getpid()}
            _announce(about, pages.url if pages is not None else "", as_json=as_json)
            if end.wait():
                gateway.finish(end.end)
                end.wait()
        finally:
            gateway.close(at_once=True)
            tokens.close()
            if pages is not None:
                pages.close()


def _announce(about: dict[str, Any], watched: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**about, **({"http": watched} if watched else {})})
    else:
        at = f", watched at {watched}" if watched else ""
        print(f"answering for {about['model']} at {about['url']}{at}", flush=True)
