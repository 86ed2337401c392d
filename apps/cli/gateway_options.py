"""The options of a gateway, for the commands that have one."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings

ApiKeys = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Lines of NAME TOKEN: who may ask the gateway; all, without it.")
]
TlsCert = Annotated[Path | None, typer.Option(metavar="FILE", help="The gateway's certificate chain, PEM.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="The key of --tls-cert, PEM.")]
InsecurePublic = Annotated[
    bool, typer.Option("--insecure-public", help="Let the gateway listen beyond this host without TLS.")
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages that may ask the gateway; * is all.")
]
ModelName = Annotated[str, typer.Option(help="What the gateway's clients call the model; by default its own name.")]
MaxUploadMb = Annotated[float, typer.Option(min=0.001, help="Largest recording for the gateway, 10^6 bytes.")]


def gateway_settings(
    listen: str,
    *,
    api_keys: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure_public: bool,
    allow_origin: list[str] | None,
    max_upload_mb: float,
    drain_s: float,
) -> GatewaySettings:
    """What was said of a gateway, as it takes it."""
    return GatewaySettings(
        listen=listen,
        api_keys=api_keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure_public=insecure_public,
        allow_origins=tuple(allow_origin or ()),
        max_audio_bytes=int(max_upload_mb * 1e6),
        drain_s=drain_s,
    )
