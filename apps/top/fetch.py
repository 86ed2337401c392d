"""Asking for `/stats` pages, several at once, each within a few seconds and a few megabytes; what fails says why."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from flagsplit.apps.top.model import Stats
from flagsplit.errors import ConfigError

TIMEOUT_S: Final = 3.0
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Page:
    """What came of asking once.

    Attributes:
        url: of the page.
        stats: the page, or None.
        data: the same as it came.
        error: why there is none, "" if there is.
    """

    url: str
    stats: Stats | None = None
    data: dict[str, Any] | None = None
    error: str = ""


def stats_url(text: str) -> str:
    """The page that somebody means: HOST:PORT and an address without a path mean its `/stats`.

    Raises:
        ConfigError: it is no HTTP address.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"expected the address of a /stats page such as http://127.0.0.1:9100, came {text!r}")
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/stats"


def fetch_all(urls: Sequence[str]) -> list[Page]:
    """Ask all pages at once."""
    with ThreadPoolExecutor(max_workers=max(1, min(len(urls), 32))) as pool:
        return list(pool.map(fetch, urls))


def fetch(url: str) -> Page:
    """Ask a page."""
    try:
        data = json.loads(_read(url))
        return Page(url, Stats.model_validate(data), data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the page"
        return Page(url, error=f"no /stats page of flagsplit: {where}: {first['msg']}")
    except (ValueError, RecursionError):
        return Page(url, error="no /stats page of flagsplit: it is no JSON")
    except urllib.error.HTTPError as error:
        return Page(url, error=f"HTTP {error.code}")
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return Page(url, error=f"unreachable: {getattr(reason, 'strerror', None) or reason or type(error).__name__}")


def _read(url: str) -> bytes:
    # Straight to the host: a proxy for the web has no business between an operator and a worker.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + TIMEOUT_S
    found = bytearray()
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        while part := answer.read1(1 << 16):
            found += part
            if len(found) > _MAX_BYTES:
                raise OSError(f"the page has more than {_MAX_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError("the page came too slowly")
    return bytes(found)
