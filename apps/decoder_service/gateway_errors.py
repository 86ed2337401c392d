"""What becomes of errors: a status, and a body in the shape that OpenAI's clients read."""

import math
from dataclasses import dataclass, field
from typing import Any

from flagsplit.apps.decoder_service.gateway_backend import BusyError
from flagsplit.errors import FlagsplitError, PeerError, UnavailableError, UsageError

_KINDS = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "requests",
}


@dataclass
class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: one line: what was expected, what came, what to do.
        code: for programs.
        param: the field that is to blame, "" if none is.
        headers: to be sent with it.
    """

    status: int
    message: str
    code: str = ""
    param: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON object that tells it."""
        kind = _KINDS.get(self.status, "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param or None, "code": self.code or None}
        }


def busy(message: str, retry_after_s: float, status: int = 429) -> ApiError:
    """There is no room now: whole seconds, at least one, as the header wants it."""
    seconds = str(max(1, math.ceil(min(retry_after_s, 3600.0))))
    return ApiError(
        status, message, "rate_limit_exceeded" if status == 429 else "unavailable", "", {"Retry-After": seconds}
    )


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error. What is our bug is told by its type only."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return busy(_line(error), error.retry_after_s)
    if isinstance(error, TimeoutError):
        return ApiError(504, "the answer was not ready in time; ask for less, or again", "timeout")
    if isinstance(error, UsageError):
        return ApiError(400, _line(error), "bad_input")
    if isinstance(error, UnavailableError):
        return busy(_line(error), 1.0, status=503)
    if isinstance(error, PeerError):
        return ApiError(502, _line(error), "upstream_failed")
    if isinstance(error, FlagsplitError):
        return ApiError(500, _line(error), "internal_error")
    return ApiError(500, f"the gateway broke: {type(error).__name__}; the server's log says more", "internal_error")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:1000]
