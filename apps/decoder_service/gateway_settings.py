"""What can be chosen of a gateway, and where it may listen."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flagsplit.errors import ConfigError
from flagsplit.runtime.telemetry.http import parse_http_address

DEFAULT_PORT: Final = 8000


@dataclass(frozen=True)
class GatewaySettings:
    """Choices for one gateway.

    Attributes:
        listen: `HOST:PORT`; port 0 takes a free one.
        api_keys: a file of bearer tokens, see `flagsplit.apps.decoder_service.gateway_keys`; None lets everyone in.
        tls_cert: certificate chain in PEM; None speaks HTTP without TLS.
        tls_key: its key in PEM.
        insecure_public: whether it may listen beyond this host without TLS.
        allow_origins: web pages of these origins may ask; `*` is all.
        max_audio_bytes: longest upload.
        max_json_bytes: longest other body.
        body_budget_bytes: all bodies that are being read or worked on together.
        max_connections: open at once.
        max_streams: being generated at once.
        max_streams_per_client: of them for one bearer token or, without tokens, one address.
        head_s: how long the head of a request may take to come, and a connection be idle.
        body_s: how long its body may take.
        write_s: how long a client may take to read what it is sent.
        request_s: how long all of it may take.
        drain_s: how long requests may take once it is told to end.
    """

    listen: str = f"127.0.0.1:{DEFAULT_PORT}"
    api_keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_public: bool = False
    allow_origins: tuple[str, ...] = ()
    max_audio_bytes: int = 25 * 1024 * 1024
    max_json_bytes: int = 1024 * 1024
    body_budget_bytes: int = 512 * 1024 * 1024
    max_connections: int = 1024
    max_streams: int = 256
    max_streams_per_client: int = 32
    head_s: float = 20.0
    body_s: float = 60.0
    write_s: float = 30.0
    request_s: float = 600.0
    drain_s: float = 30.0

    def address(self) -> tuple[str, int]:
        """Host and port.

        Raises:
            ConfigError: they cannot be read, or would be open to others without TLS.
        """
        host, port = parse_http_address(self.listen)
        if self.tls_cert is None and not self.insecure_public and not _is_loopback(host):
            raise ConfigError(
                f"the gateway would listen at {self.listen} without TLS, where others can read along; give --tls-cert "
                "and --tls-key, listen at 127.0.0.1, or say --insecure-public if something in front of it speaks TLS"
            )
        return host, port

    def tls(self) -> ssl.SSLContext | None:
        """What encrypts connections, if anything does.

        Raises:
            ConfigError: a file is missing, cannot be read, or does not fit the other.
        """
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ConfigError("--tls-cert and --tls-key belong together; give both")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without the function it would ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot use --tls-cert {self.tls_cert} with --tls-key {self.tls_key}: {reason}"
            ) from None
        return context


def _no_password() -> str:
    raise ConfigError("the key of --tls-key is encrypted; give one without a password, readable by its owner only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
