"""What becomes of aiohttp's own log: bytes that are no HTTP, which any stranger can send, are no matter of ours."""

import logging


def http_log() -> logging.Logger:
    """The logger for a gateway's connections.

    aiohttp would write a traceback for each request that it cannot read: a log that strangers fill.
    """
    found = logging.getLogger("flagsplit.gateway.http")
    found.addFilter(_is_no_strangers_fault)
    return found


def _is_no_strangers_fault(record: logging.LogRecord) -> bool:
    from aiohttp.http import HttpProcessingError  # only here, because aiohttp is an extra

    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)
