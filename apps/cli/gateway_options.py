"""The options of a gateway, for the commands that have one."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class GatewayOptions:
    """What was said of a gateway on the command line."""

    listen: str
    api_keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_public: bool = False
    allow_origin: list[str] = field(default_factory=list)
    max_upload_mb: float = 26.2144
    drain_s: float = 30.0

    def settings(self) -> GatewaySettings:
        """As a gateway takes it."""
        return GatewaySettings(
            listen=self.listen,
            api_keys=self.api_keys,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            insecure_public=self.insecure_public,
            allow_origins=tuple(self.allow_origin),
            max_audio_bytes=int(self.max_upload_mb * 1e6),
            drain_s=self.drain_s,
        )
