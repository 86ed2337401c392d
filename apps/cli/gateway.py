"""`flagsplit gateway`: OpenAI's pages and a WebSocket, in front of decoder services."""

import os
from typing import Annotated

import typer

from flagsplit.apps.cli.common_options import Cloud, Keys
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
    drain_s: Annotated[float, typer.Option(min=0, help="How long requests may take once it is told to end.")] = 30.0,
    max_wait_s: Annotated[
        float, typer.Option(min=0.1, help="Refuse a stream that has not begun after so long.")
    ] = 20.0,
    keys: Keys = None,
    http: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there too; port 0: a free one."),
    ] = "",
    until_stdin_closes: Annotated[bool, typer.Option(help="End when standard input closes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Let clients of OpenAI's API, and web pages, ask decoder services, until interrupted.

    Once lets requests that are in hand finish, twice ends at once.
    """
    from flagsplit.apps.decoder_service.gateway import Gateway, require_aiohttp
    from flagsplit.apps.decoder_service.gateway_opening import open_backend, whole_input
    from flagsplit.apps.decoder_service.gateway_pages import watch_gateway
    from flagsplit.apps.decoder_service.gateway_source import ClientSource
    from flagsplit.runtime.generation.client import ClientSettings, StreamClient

    require_aiohttp()
    addresses = [each.strip() for each in cloud.split(",") if each.strip()]
    if not addresses:
        raise ConfigError("--cloud expects addresses such as tcp://cloud.example:5555, came none")
    options = GatewayOptions(
        listen, api_keys, tls_cert, tls_key, insecure_public, allow_origin or [], max_upload_mb, drain_s
    )
    source = open_source(program, tier)
    with (
        ending() as (ended, end),
        StreamClient(addresses, source.digest, settings=ClientSettings(tier=tier, keys=keys)) as client,
    ):
        tokens = ClientSource(client, whole_input(source), max_wait_s)
        backend = open_backend(source, tokens, model_name)
        gateway = Gateway([backend], options.settings())
        pages = watch_gateway(gateway, backend, http) if http else None
        try:
            about = {"url": gateway.url, "model": backend.facts.name, "bundle": source.digest, "pid": os.getpid()}
            if as_json:
                print_json({**about, **({"http": pages.url} if pages is not None else {})})
            else:
                watched = f", watched at {pages.url}" if pages is not None else ""
                print(f"answering for {backend.facts.name} at {gateway.url}{watched}", flush=True)
            if wait_for_end(ended, watch_stdin=until_stdin_closes):
                gateway.finish(end)
                wait_for_end(ended, watch_stdin=until_stdin_closes)
        finally:
            gateway.close(at_once=True)
            tokens.close()
            if pages is not None:
                pages.close()
