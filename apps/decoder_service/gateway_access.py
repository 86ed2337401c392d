"""Who may ask: bearer tokens, and web pages of other origins. Needs aiohttp."""

import logging

from aiohttp import hdrs, web

from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_keys import ApiKeys
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.errors import ConfigError

BEARER_PROTOCOL = "bearer."
"""Web pages cannot set headers of a WebSocket: there the token is the end of one of the subprotocols offered."""

_log = logging.getLogger("flagsplit.gateway")


class Access:
    """Looks at requests before they are handled.

    Args:
        settings: the file of tokens, if there is one, and the origins allowed.

    Raises:
        ConfigError: the file of tokens cannot be used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._keys = ApiKeys(settings.api_keys) if settings.api_keys is not None else None
        self._origins = frozenset(settings.allow_origins)

    def client(self, request: web.Request) -> str:
        """On whose account it runs.

        Raises:
            ApiError: nobody's.
        """
        if self._keys is None:
            return f"at {request.remote or 'nowhere'}"
        try:
            name = self._keys.client(_token(request))
        except ConfigError as error:
            _log.error("nobody is let in: %s", error)
            raise ApiError(503, "the gateway cannot read its tokens; tell its operator", "unavailable") from None
        if not name:
            raise ApiError(
                401,
                "expected the header Authorization: Bearer with a token that this gateway knows",
                "invalid_api_key",
                headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
            )
        return name

    def check_origin(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether it may ask; None to go on.

        A browser sends some requests of any page without asking, so those of other origins are refused here.

        Raises:
            ApiError: the page's origin is not allowed.
        """
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin and not self._allows(origin):
            raise ApiError(403, f"web pages of {origin!r:.100} may not ask here; --allow-origin allows them", "origin")
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type",
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        }
        return web.Response(status=204, headers=headers)

    def allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let the page that asked read the answer."""
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin and self._allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "X-Request-Id, Retry-After"
            response.headers[hdrs.VARY] = hdrs.ORIGIN

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins


def _token(request: web.Request) -> str:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for offered in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(","):
        if offered.strip().startswith(BEARER_PROTOCOL):
            return offered.strip().removeprefix(BEARER_PROTOCOL)
    return ""
