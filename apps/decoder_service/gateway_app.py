"""The pages of the gateway and what stands before them: tokens, origins, limits, the shape of errors. Needs aiohttp."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

from aiohttp import hdrs, web

from flagsplit._version import VERSION
from flagsplit.apps.decoder_service import gateway_chat as chat
from flagsplit.apps.decoder_service import gateway_completions as completions
from flagsplit.apps.decoder_service import gateway_transcriptions as transcriptions
from flagsplit.apps.decoder_service.gateway_access import Access
from flagsplit.apps.decoder_service.gateway_backend import Listener, ModelFacts
from flagsplit.apps.decoder_service.gateway_errors import ApiError, api_error, busy
from flagsplit.apps.decoder_service.gateway_fields import Fields, read_json
from flagsplit.apps.decoder_service.gateway_load import Load
from flagsplit.apps.decoder_service.gateway_metrics import GatewayMetrics
from flagsplit.apps.decoder_service.gateway_models import Models
from flagsplit.apps.decoder_service.gateway_multipart import read_multipart
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.apps.decoder_service.gateway_socket import SocketClient
from flagsplit.apps.decoder_service.gateway_sse import EventStream
from flagsplit.apps.speech.transcriber import Segment
from flagsplit.apps.text.tokenizer import Tokenizer

_HEALTH: Final = ("/healthz", "/readyz")
_COPIES_OF_AUDIO: Final = 3
"""An upload takes its own size, and as samples in floating point twice that."""

_ID = web.RequestKey("id", str)
_CLIENT = web.RequestKey("client", str)
_STARTED = web.RequestKey("started", float)

Item = TypeVar("Item")
ReadAsked = Callable[[Fields, ModelFacts, Tokenizer], completions.Completion]
_log = logging.getLogger("flagsplit.gateway")


class GatewayApp:
    """The handlers.

    Args:
        models: what answers.
        settings: limits.
        load: what is in hand.
        metrics: counts.

    Attributes:
        stopping: set when the gateway ends; WebSockets then end too.

    Raises:
        ConfigError: the file of tokens cannot be used.
    """

    def __init__(self, models: Models, settings: GatewaySettings, load: Load, metrics: GatewayMetrics) -> None:
        self._models = models
        self._settings = settings
        self._load = load
        self._metrics = metrics
        self._access = Access(settings)
        self._in_hand = 0
        self.stopping = asyncio.Event()

    async def wait_idle(self, longest_s: float, at_once: asyncio.Event) -> None:
        """Until no request is in hand, so long at most, or until it is to end at once."""
        end = time.monotonic() + longest_s
        while self._in_hand and time.monotonic() < end and not at_once.is_set():
            await asyncio.sleep(0.02)

    def application(self) -> web.Application:
        """The application, to be run once."""
        found = web.Application(middlewares=[self._around], client_max_size=self._settings.max_json_bytes)
        found.on_response_prepare.append(self._finish_headers)
        found.add_routes(
            [
                web.get("/v1/models", self._list_models),
                web.get("/v1/models/{name}", self._show_model),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/audio/transcriptions", self._transcribe),
                web.get("/v1/stream", self._socket),
                web.get("/healthz", self._alive),
                web.get("/readyz", self._ready),
            ]
        )
        return found

    @web.middleware
    async def _around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        started, route = time.monotonic(), _route(request)
        request[_ID], request[_STARTED] = f"req_{secrets.token_hex(12)}", started
        status = 499  # The client left: nobody reads the status.
        self._in_hand += 1
        try:
            response = await self._answer(request, handler)
            status = response.status
            return response
        finally:
            self._in_hand -= 1
            self._metrics.answered(route, status, time.monotonic() - started)

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            preflight = self._access.check_origin(request)
            if preflight is not None:
                return preflight
            if request.path in _HEALTH:
                return await _as_response(handler(request))
            request[_CLIENT] = self._access.client(request)
            if self._load.draining:
                raise busy("the gateway is about to end; ask another, or again", 1.0, status=503)
            if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
                raise ApiError(415, "expected a body that is not compressed; leave out Content-Encoding", "bad_input")
            return await _as_response(handler(request))
        except web.HTTPException as error:
            return _error_page(_of_aiohttp(error))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets JSON and the log the rest
            told = api_error(error)
            if told.status == 500:
                _log.exception("request %s failed", request[_ID])
            return _error_page(told)

    async def _finish_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = f"flagsplit/{VERSION}"
        response.headers["X-Request-Id"] = request.get(_ID, "")
        response.headers["X-Content-Type-Options"] = "nosniff"
        self._access.allow_origin(request, response)

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _ready(self, _: web.Request) -> web.Response:
        reason = "draining" if self._load.draining else self._models.not_ready()
        return web.json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self._models.listed()})

    async def _show_model(self, request: web.Request) -> web.Response:
        return web.json_response(self._models.shown(request.match_info["name"]))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._write(request, completions.read_completion, completions.SHAPE)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._write(request, chat.read_chat, chat.SHAPE)

    async def _write(self, request: web.Request, read: ReadAsked, shape: completions.Shape) -> web.StreamResponse:
        limit = self._settings.max_json_bytes
        with self._load.take_bytes(min(request.content_length or limit, limit)):
            data = read_json(await self._body(request, limit))
        fields = Fields(data)
        backend = self._models.text(fields.text("model", longest=256))
        # Tokenizing a megabyte takes a while.
        asked = await asyncio.to_thread(read, fields, backend.facts, backend.tokenizer)
        with self._load.take_streams(request[_CLIENT], asked.choices):
            made = completions.choices(backend, asked, request[_CLIENT])
            deltas = self._counted(made, request, lambda item: item[1].tokens)
            writer = completions.Writer(asked, shape, backend.facts.name)
            async with aclosing(deltas):
                if asked.stream:
                    return await self._send_events(request, writer.events(deltas), "[DONE]")
                async with self._in_time(request):
                    answer = await writer.whole_answer(deltas)
            return web.json_response(answer)

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        limit = self._settings.max_audio_bytes
        with self._load.take_bytes(min(request.content_length or limit, limit) * _COPIES_OF_AUDIO):
            body = await self._body(request, limit)
            asked = transcriptions.read_transcription(read_multipart(request.headers.get(hdrs.CONTENT_TYPE, ""), body))
            listener = self._models.speech(asked.model)
            transcriptions.check_language(asked, listener.facts)
            with self._load.take_streams(request[_CLIENT], 1):
                return await self._listen(request, listener, asked)

    async def _listen(
        self, request: web.Request, listener: Listener, asked: transcriptions.Transcription
    ) -> web.StreamResponse:
        sound = await asyncio.to_thread(listener.open_sound, bytes(asked.audio))
        with sound:
            made = listener.listen(sound, asked.wanted(request[_CLIENT]))
            heard = self._counted(made, request, lambda item: item.tokens if isinstance(item, Segment) else 0)
            async with aclosing(heard):
                if asked.stream:
                    return await self._send_events(request, transcriptions.events(heard, sound.seconds), "")
                async with self._in_time(request):
                    answer, kind = await transcriptions.whole_answer(heard, asked, listener.facts, sound.seconds)
        if isinstance(answer, str):
            return web.Response(text=answer, content_type=kind, charset="utf-8")
        return web.json_response(answer)

    async def _counted(
        self, items: AsyncGenerator[Item, None], request: web.Request, tokens: Callable[[Item], int]
    ) -> AsyncGenerator[Item, None]:
        async with aclosing(items):
            async for item in items:
                self._metrics.tokens(_route(request), tokens(item))
                yield item

    async def _send_events(
        self, request: web.Request, events: AsyncGenerator[dict[str, Any], None], mark: str
    ) -> web.StreamResponse:
        """Events as they are made. What fails before the first has a status of its own."""
        async with aclosing(events):
            async with self._in_time(request):
                first = await anext(events)
            self._metrics.first_event(_route(request), time.monotonic() - request[_STARTED])
            stream = EventStream(request, self._settings.write_s)
            await stream.begin()
            try:
                async with self._in_time(request):
                    await stream.send(first)
                    async for event in events:
                        await stream.send(event)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - the status is sent: it can only be told as an event
                told = api_error(error)
                if told.status == 500:
                    _log.exception("request %s failed", request[_ID])
                await stream.send(told.body())
            else:
                if mark:
                    await stream.send(mark)
            return await stream.end()

    def _in_time(self, request: web.Request) -> asyncio.Timeout:
        """Ends what takes longer than a request may."""
        left_s = request[_STARTED] + self._settings.request_s - time.monotonic()
        return asyncio.timeout(max(left_s, 0.0))

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        client = SocketClient(self._models, self._settings, self._load, request[_CLIENT])
        return await client.serve(request, self.stopping)

    async def _body(self, request: web.Request, limit: int) -> bytes:
        """All of it, never more than `limit` bytes in memory."""
        too_long = ApiError(413, f"a body may have {limit} bytes here; send less", "too_large")
        if (request.content_length or 0) > limit:
            raise too_long
        found = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_s):
                async for part in request.content.iter_any():
                    if len(found) + len(part) > limit:
                        raise too_long
                    found += part
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._settings.body_s:g} seconds", "timeout") from None
        return bytes(found)


async def _as_response(answer: Any) -> web.StreamResponse:
    found = await answer
    assert isinstance(found, web.StreamResponse)
    return found


def _route(request: web.Request) -> str:
    """The page as it is written in the table, so that clients cannot invent labels of metrics."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


def _error_page(error: ApiError) -> web.Response:
    return web.json_response(error.body(), status=error.status, headers=error.headers)


def _of_aiohttp(error: web.HTTPException) -> ApiError:
    headers = {"Allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
    allowed = headers.get("Allow", "another method")
    text = {
        404: "no such page; docs/gateway.md lists them",
        405: f"this page takes {allowed}; docs/gateway.md lists them",
    }
    return ApiError(error.status, text.get(error.status, error.reason), "", "", headers)
