"""Server-sent events: an answer that is sent while it is made."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """Events to one client.

    Args:
        request: to be answered.
        write_s: how long the client may take to read an event.
    """

    def __init__(self, request: web.Request, write_s: float) -> None:
        self._request = request
        self._write_s = write_s
        self._response = web.StreamResponse(headers=_HEADERS)

    async def begin(self) -> None:
        """Send the status: from here on an error is an event."""
        await self._response.prepare(self._request)

    async def send(self, data: Mapping[str, Any] | str) -> None:
        """One event.

        Raises:
            ConnectionError: the client is gone, or does not read.
        """
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        try:
            async with asyncio.timeout(self._write_s):
                await self._response.write(f"data: {text}\n\n".encode())
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client does not read") from None

    async def end(self) -> web.StreamResponse:
        """The last event was sent."""
        await self._response.write_eof()
        return self._response
