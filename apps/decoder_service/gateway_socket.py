"""One client's WebSocket (`/v1/stream`): several streams at once, input in binary frames, tokens as they come.

For browsers and React Native, which have no ZeroMQ. What the messages are is in docs/gateway.md. Needs aiohttp.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from aiohttp import WSMsgType, web

from flagsplit.apps.decoder_service.gateway_backend import Backend, BusyError, Listener, Piece, Wanted
from flagsplit.apps.decoder_service.gateway_errors import ApiError, api_error
from flagsplit.apps.decoder_service.gateway_fields import Fields, read_json
from flagsplit.apps.decoder_service.gateway_frames import (
    HEAD,
    MAX_STREAM,
    RATE_HZ,
    AudioForm,
    Frame,
    Opening,
    read_frame,
    read_opening,
)
from flagsplit.apps.decoder_service.gateway_load import Load
from flagsplit.apps.decoder_service.gateway_models import Models
from flagsplit.apps.decoder_service.gateway_settings import GatewaySettings
from flagsplit.apps.decoder_service.gateway_sound import PcmSound
from flagsplit.apps.speech.transcriber import NewWord, Segment

SUBPROTOCOL: Final = "flagsplit.v1"
MAX_FRAME_BYTES: Final = 1 << 20
_HEARTBEAT_S: Final = 20.0

_log = logging.getLogger("flagsplit.gateway")


@dataclass
class _Stream:
    """A stream of this client: what came of its input, then the task that generates."""

    opening: Opening
    backend: Backend
    held: ExitStack
    data: list[bytearray] = field(default_factory=list)
    complete: set[int] = field(default_factory=set)
    sound: PcmSound | None = None
    task: asyncio.Task[None] | None = None


class SocketClient:
    """Serves one connection.

    Args:
        models: what answers.
        settings: limits.
        load: what is in hand.
        client: on whose account.
    """

    def __init__(self, models: Models, settings: GatewaySettings, load: Load, client: str) -> None:
        self._models = models
        self._settings = settings
        self._load = load
        self._client = client
        self._streams: dict[int, _Stream] = {}
        self._socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            heartbeat=_HEARTBEAT_S,
            max_msg_size=MAX_FRAME_BYTES + HEAD.size + 1,
            compress=False,
        )

    async def serve(self, request: web.Request, stopping: asyncio.Event) -> web.WebSocketResponse:
        """Until the client leaves, or everything it began is done after `stopping` is set."""
        await self._socket.prepare(request)
        ending = asyncio.create_task(self._end_when(stopping))
        try:
            async for message in self._socket:
                if message.type == WSMsgType.TEXT:
                    await self._told(message.data)
                elif message.type == WSMsgType.BINARY:
                    await self._fed(message.data)
        finally:
            ending.cancel()
            for number in list(self._streams):
                await self._drop(number)
        return self._socket

    async def _end_when(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._socket.close(code=1001, message=b"the gateway ends")

    async def _told(self, text: str) -> None:
        number: int | None = None
        try:
            fields = Fields(read_json(text.encode()))
            kind = fields.choice("type", ("open", "cancel"), "")
            number = fields.whole("stream", -1, 0, MAX_STREAM)
            if kind == "cancel":
                fields.end()
                await self._cancel(number)
            else:
                await self._open(number, fields)
        except Exception as error:  # noqa: BLE001 - the client is told, the connection stays
            await self._fail(number, error)

    async def _open(self, number: int, fields: Fields) -> None:
        if number in self._streams:
            raise ApiError(400, f"stream {number} is open; give another number", "invalid_value", "stream")
        if self._load.draining:
            raise BusyError("the gateway is about to end; ask another, or again")
        backend = self._models.any(fields.text("model", longest=256))
        # Tokenizing a megabyte takes a while.
        opening = await asyncio.to_thread(read_opening, number, fields, backend.facts, backend.tokenizer)
        promised = sum(each.size_bytes for each in opening.inputs)
        if promised > self._settings.max_audio_bytes:
            limit = self._settings.max_audio_bytes
            raise ApiError(413, f"the tensors of a stream may have {limit} bytes here, came {promised}", "too_large")
        with ExitStack() as stack:
            stack.enter_context(self._load.take_streams(self._client, 1))
            stack.enter_context(self._load.take_bytes(promised))
            held = stack.pop_all()
        stream = _Stream(opening, backend, held, [bytearray() for _ in opening.inputs])
        self._streams[number] = stream
        if opening.audio is not None:
            self._listen_to(stream, opening.audio)
        elif not opening.inputs:
            self._start(stream)
        else:
            # What was promised is kept free for it, but not for ever.
            timer = asyncio.get_running_loop().call_later(self._settings.body_s, self._give_up, stream)
            held.callback(timer.cancel)

    def _give_up(self, stream: _Stream) -> None:
        if stream.task is None:
            stream.task = asyncio.create_task(self._run(stream.opening.stream, self._too_late, None))

    async def _too_late(self) -> str:
        raise ApiError(408, f"the tensors did not come within {self._settings.body_s:g} seconds", "timeout")

    async def _fed(self, data: bytes) -> None:
        number: int | None = None
        try:
            frame = read_frame(data)
            stream = self._streams.get(frame.stream)
            if stream is None:
                return  # It failed or was cancelled while this was on its way.
            number = frame.stream
            if stream.sound is not None and stream.opening.audio is not None:
                self._hear(stream.sound, stream.opening.audio, frame)
                return
            if frame.tensor >= len(stream.data) or frame.tensor in stream.complete or stream.task is not None:
                raise ApiError(400, f"stream {number} expects no more of tensor {frame.tensor}", "bad_input")
            self._append(stream, frame.tensor, frame.data)
            if frame.last:
                stream.complete.add(frame.tensor)
                if len(stream.complete) == len(stream.data):
                    self._start(stream)
        except Exception as error:  # noqa: BLE001 - the client is told, the connection stays
            await self._fail(number, error)

    def _append(self, stream: _Stream, index: int, data: memoryview) -> None:
        expected, have = stream.opening.inputs[index], stream.data[index]
        if len(have) + len(data) > expected.size_bytes:
            raise ApiError(413, f"{expected.name}: expected {expected.size_bytes} bytes, more came", "too_large")
        have += data

    def _start(self, stream: _Stream) -> None:
        opening = stream.opening
        tensors = {each.name: each.array(data) for each, data in zip(opening.inputs, stream.data, strict=True)}
        wanted = Wanted(self._client, opening.options, opening.prompt, opening.generated, opening.plan, tensors)
        stream.data = []
        work = partial(self._generate, opening.stream, stream.backend, wanted)
        stream.task = asyncio.create_task(self._run(opening.stream, work, self._settings.request_s))

    def _listen_to(self, stream: _Stream, form: AudioForm) -> None:
        stream.sound = PcmSound(RATE_HZ)
        stream.held.enter_context(self._load.hear(stream.sound))
        listener, opening = cast("Listener", stream.backend), stream.opening
        wanted = Wanted(self._client, opening.options)
        work = partial(self._listen, opening.stream, listener.listen(stream.sound, wanted, live=form.live))
        # Somebody may speak for hours.
        stream.task = asyncio.create_task(self._run(opening.stream, work, None))

    def _hear(self, sound: PcmSound, form: AudioForm, frame: Frame) -> None:
        if sound.waiting_bytes + len(frame.data) > self._settings.max_audio_bytes:
            raise ApiError(413, "audio came faster than it is listened to; send it as it is spoken", "too_large")
        samples = form.samples(bytes(frame.data))
        self._load.check_bytes(samples.nbytes)
        sound.push(samples)
        if frame.last:
            sound.end()

    async def _run(self, number: int, work: Callable[[], Awaitable[str]], longest_s: float | None) -> None:
        try:
            async with asyncio.timeout(longest_s):
                reason = await work()
            await self._send({"type": "done", "stream": number, "reason": reason})
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - the client is told, the connection stays
            with suppress(ConnectionError):
                await self._tell(number, error)
        finally:
            stream = self._streams.pop(number, None)
            if stream is not None:
                stream.held.close()

    async def _generate(self, number: int, backend: Backend, wanted: Wanted) -> str:
        text, offset = backend.tokenizer.decode_stream(), len(wanted.generated)
        text.feed((*wanted.prompt, *wanted.generated))
        async with aclosing(backend.generate(wanted)) as pieces:
            async for piece in pieces:
                shown = text.feed(piece.tokens) + (text.finish() if piece.reason else "")
                await self._send_tokens(number, offset, piece, shown)
                offset += len(piece.tokens)
                if piece.reason:
                    return piece.reason
        raise ApiError(502, "the stream ended without a reason; ask again", "upstream_failed")

    async def _send_tokens(self, number: int, offset: int, piece: Piece, text: str) -> None:
        if piece.tokens or text:
            about = {"type": "tokens", "stream": number, "offset": offset, "tokens": list(piece.tokens)}
            await self._send({**about, "text": text, "where": piece.where})

    async def _listen(self, number: int, heard: AsyncGenerator[NewWord | Segment, None]) -> str:
        async with aclosing(heard):
            async for each in heard:
                if isinstance(each, NewWord):
                    await self._send({"type": "word", "stream": number, "text": each.text, "where": each.where})
                else:
                    words = [{"text": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in each.words]
                    await self._send({"type": "segment", "stream": number, "words": words, "tokens": each.tokens})
        return "stop"

    async def _cancel(self, number: int) -> None:
        if number in self._streams:
            await self._drop(number)
            await self._send({"type": "done", "stream": number, "reason": "cancelled"})

    async def _drop(self, number: int) -> None:
        stream = self._streams.pop(number)
        try:
            if stream.task is not None:
                stream.task.cancel()
                await asyncio.gather(stream.task, return_exceptions=True)
        finally:
            stream.held.close()

    async def _fail(self, number: int | None, error: Exception) -> None:
        """A message could not be followed: if it was of a stream that still gets its input, that is over."""
        stream = self._streams.get(number) if number is not None else None
        if stream is not None and number is not None and (stream.task is None or stream.sound is not None):
            await self._drop(number)
        await self._tell(number, error)

    async def _tell(self, number: int | None, error: Exception) -> None:
        told = api_error(error)
        if told.status == 500:
            _log.error("stream %s failed", number, exc_info=error)
        again: dict[str, float] = {}
        if isinstance(error, BusyError):
            again = {"retry_after_s": error.retry_after_s}
        elif "Retry-After" in told.headers:
            again = {"retry_after_s": float(told.headers["Retry-After"])}
        await self._send({"type": "error", "stream": number, **told.body(), **again})

    async def _send(self, message: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._settings.write_s):
                await self._socket.send_str(json.dumps(message, ensure_ascii=False, separators=(",", ":")))
        except TimeoutError:
            raise ConnectionResetError("the client does not read") from None
