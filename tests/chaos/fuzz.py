"""Messages at random: well-typed ones of every type, made from the schema, and broken ones made from those.

The schema of a field is its annotation, so a field that is appended is fuzzed without a change here. Values are those
at which code breaks: limits, zeros, names that mean something to the receiver. What is sent where, and what must hold
afterwards, is in the tests.
"""

import copy
import dataclasses
import random
import typing
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack

from flagsplit.errors import InternalError
from flagsplit.transport.message_fields import MAX_PAYLOAD_BYTES
from flagsplit.transport.messages import MESSAGE_TYPES, Chunk, Frame, Hop, Lane, Message, Open, TensorHeader, encode
from flagsplit.transport.schema import Flag, ListOf, MapOf, Prose, Recurring, StructOf, Text, Whole

_packb: Final[Callable[[object], bytes]] = msgpack.packb
_unpackb: Final[Callable[[Frame], dict[str, Any]]] = msgpack.unpackb  # type: ignore[attr-defined]
_WHOLE: Final = (0, 1, 2, 3, 17, 255, 4096, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 53) - 1)
_DEEP: Final[Any] = [[[[[[[[[[[[]]]]]]]]]]]]
_ILL: Final[tuple[Any, ...]] = (
    *(
        -1,
        -(1 << 63),
        1 << 53,
        (1 << 64) - 1,
        1.5,
        float("nan"),
        float("inf"),
        None,
        True,
        "",
        "x" * 2000,
        b"",
        b"\0" * 99,
    ),
    *([], {}, [None] * 1000, {"a": {"b": {}}}, _DEEP, ["x"] * 300, {str(n): n for n in range(200)}, "\ud7ff\0\x1b[2J"),
)
_PATTERNED: Final = {
    "[0-9a-f]{32}": ("0" * 32, "f" * 32),
    "session|worker": ("session", "worker"),
    "[0-9a-f]{64}": ("a" * 64, "0" * 64),
    "(zstd|lz4)?": ("", "zstd", "lz4"),
    "(.{40})?": ("", "x" * 40, "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"),
}
_MEANT: Final = ("", "phone", "edge", "cloud", "a", "x", "é", "\0", "partial", "ready", "float32")


class Fuzzer:
    """Draws messages for one receiver.

    Args:
        rng: where chance comes from.
        opened: an announcement that the receiver would take, with tensors of zeros.
        names: more text that means something to it, such as digests and addresses.
    """

    def __init__(self, rng: random.Random, opened: Open, names: Sequence[str]) -> None:
        self.rng = rng
        self._opened = opened
        self._names = (*_MEANT, *names, opened.bundle, *(hop.segment for hop in opened.route))
        self.sid = opened.sid
        self.rids: Sequence[int] = range(4)

    def message(self) -> Message:
        """Any message, within the limits of the protocol."""
        if self.rng.random() < 0.4:
            return self.rng.choice((self._twisted_open, self._twisted_chunk))()
        while True:
            cls = self.rng.choice(list(MESSAGE_TYPES.values()))
            made = self._valid(lambda cls=cls: typing.cast("Message", self._struct(cls)))  # type: ignore[misc]
            if made is not None:
                return made

    def transfer(self, rid: int) -> list[Message]:
        """An announcement that makes sense, and its bytes, in random order now and then."""
        opened = replace(self._opened, sid=self.sid, rid=rid)
        messages: list[Message] = [opened]
        for at, header in enumerate(opened.tensors):
            zeros = bytes(header.size_bytes)
            messages.append(Chunk(self.sid, rid, opened.attempt, opened.hop, at, 0, zlib.crc32(zeros), payload=zeros))
        if self.rng.random() < 0.3:
            self.rng.shuffle(messages)
        return messages

    def broken(self) -> tuple[Lane, list[Frame]]:
        """Frames that are no message, as a rule."""
        message = self.message()
        lane, frames = message.LANE, encode(message)
        header = _unpackb(frames[0])
        kind = self.rng.randrange(8)
        if kind == 0:
            lane = next(other for other in Lane if other is not lane)
        elif kind == 1:
            frames = [frames[0][: self.rng.randrange(len(frames[0]))], *frames[1:]]
        elif kind == 2:
            frames = [*frames, *[b"x" * self.rng.choice((0, 1, 5000))] * self.rng.choice((1, 2, 40))]
        elif kind == 3:
            frames = [self.rng.randbytes(self.rng.choice((0, 1, 10, 1000, 70_000))), *frames[1:]]
        elif kind == 4:
            frames = [_packb(self._plain(4)), *frames[1:]]
        elif kind == 5:
            del header[self.rng.choice(list(header))]
            frames = [_packb(header), *frames[1:]]
        else:
            for _ in range(self.rng.choice((1, 1, 1, 4))):
                self._break_in(header)
            frames = [_packb(header), *frames[1:]]
        return lane, frames

    def _break_in(self, header: dict[str, Any]) -> None:
        """Spoil one value, at any depth."""
        holder: Any = header
        while True:
            key = self.rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if isinstance(holder[key], dict | list) and holder[key] and self.rng.random() < 0.7:
                holder = holder[key]
                continue
            holder[key] = copy.deepcopy(self.rng.choice((*_ILL, *_WHOLE)))
            return

    def _plain(self, depth: int) -> Any:
        if depth == 0 or self.rng.random() < 0.3:
            return self.rng.choice((*_ILL, *_WHOLE))
        if self.rng.random() < 0.4:
            return [self._plain(depth - 1) for _ in range(self.rng.randrange(5))]
        made: dict[str, Any] = {self.rng.choice(self._names): self._plain(depth - 1) for _ in range(4)}
        return made | {"type": self.rng.choice(list(MESSAGE_TYPES))}

    def _twisted_open(self) -> Message:
        """The one that makes sense, with one thing changed."""
        opened = replace(self._opened, sid=self.sid, rid=self.rng.choice(self.rids), attempt=self.rng.randrange(3))
        name = self.rng.choice([field.name for field in dataclasses.fields(Open)])
        twisted = self._valid(lambda: replace(opened, **{name: self._field(Open, name)}))
        if twisted is None or self.rng.random() < 0.4:
            twisted = self._valid(lambda: replace(opened, tensors=tuple(map(self._lie, opened.tensors))))
        return twisted or opened

    def _lie(self, header: TensorHeader) -> TensorHeader:
        dtype, item_bytes = self.rng.choice((("float32", 4), ("bool", 1), ("bfloat16", 2), ("complex128", 16)))
        shape = self.rng.choice(
            ((2, 24), (0, 24), (24,), (), (1, 2, 3), (0, (1 << 53) - 1, (1 << 53) - 1), (1 << 22,), (2, 12, 2))
        )
        size_bytes = item_bytes
        for size in shape:
            size_bytes *= size
        return TensorHeader(header.name, dtype, shape, size_bytes)

    def _twisted_chunk(self) -> Message:
        payload = self.rng.randbytes(self.rng.choice((1, 24, 192, 4096, 100_000)))
        crc32 = zlib.crc32(payload) if self.rng.random() < 0.8 else 0
        at = self.rng.choice((0, 0, 0, 1, 4096, 1 << 40))
        squeeze = self.rng.choice(("", "", "zstd", "lz4"))
        chunk = Chunk(self.sid, self.rng.choice(self.rids), self.rng.randrange(3), self._opened.hop, 0, at, crc32)
        return replace(chunk, squeeze=squeeze, raw_bytes=192 if squeeze else 0, payload=payload)

    def _valid(self, make: Callable[[], Message]) -> Message | None:
        try:
            message = make()
            encode(message)
        except InternalError:
            return None
        return message

    def _struct(self, cls: type) -> Any:
        values = {field.name: self._field(cls, field.name) for field in dataclasses.fields(cls)}
        if cls is Hop or self.rng.random() < 0.5:
            return cls(**values)
        optional = {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        return cls(**{name: value for name, value in values.items() if name not in optional or name == "payload"})

    def _field(self, cls: type, name: str) -> Any:
        if name == "payload":
            return self.rng.randbytes(self.rng.choice((1, 100, 4096, MAX_PAYLOAD_BYTES // 8)))
        if name == "rid" and self.rng.random() < 0.8:
            return self.rng.choice(self.rids)
        if name in ("attempt", "hop", "tensor") and self.rng.random() < 0.8:
            return self.rng.randrange(4)
        if name == "sid" and self.rng.random() < 0.8:
            return self.sid
        if name in ("version_min", "version_max"):
            return self.rng.choice(((1, 0), (1, 1), (0, 0), (2, 0), (65_535, 65_535)))
        hints = typing.get_type_hints(cls, include_extras=True)
        return self._of(next(mark for mark in hints[name].__metadata__ if hasattr(mark, "load")))

    def _of(self, check: Any) -> Any:
        match check:
            case Whole(low, high):
                return min(max(self.rng.choice(_WHOLE), low), high)
            case Flag():
                return self.rng.random() < 0.5
            case Text(limit_bytes, pattern):
                choices = _PATTERNED.get(pattern.pattern, ("",)) if pattern else (*self._names, "x" * limit_bytes)
                return self.rng.choice([text for text in choices if len(text.encode()) <= limit_bytes])
            case Prose(limit_bytes):
                return self.rng.choice(("", "why not", "\x1b[2J\n", "é" * (limit_bytes // 2)))
            case ListOf(item, most, fewest):
                count = min(max(self.rng.choice((0, 1, 1, 2, 3, 5, most)), fewest), most)
                return tuple(self._of(item) for _ in range(count))
            case MapOf(key, item, most):
                return {self._of(key): self._of(item) for _ in range(self.rng.choice((0, 1, 2, most)))}
            case Recurring():
                return self._of(check._check)
            case StructOf():
                return self._struct(check.cls)
        raise TypeError(f"no idea how to draw a {check}")
