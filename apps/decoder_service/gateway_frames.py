"""What goes over the gateway's WebSocket (docs/gateway.md): JSON that opens streams, and binary frames of their input.

A binary frame is `stream` u32, `tensor` u16, `flags` u16, little-endian, then bytes of that tensor's elements, appended
in the order they come. Flag 1 says that this input is complete.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from flagsplit.apps.decoder_service.gateway_backend import Cut, ModelFacts
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields, wrong
from flagsplit.apps.decoder_service.gateway_sound import to_samples
from flagsplit.apps.speech.transcriber import Samples
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.runtime.generation.options import GenerationOptions, options_from_json
from flagsplit.targets.interface import Array

HEAD: Final = struct.Struct("<IHH")
LAST: Final = 1
MAX_STREAM: Final = (1 << 32) - 1
MAX_TENSORS: Final = 8
RATE_HZ: Final = 16_000
_AUDIO: dict[str, int] = {"s16le": 2, "f32le": 4}
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float16", "int64", "int32", "int16", "int8", "uint8")
}


@dataclass(frozen=True)
class Frame:
    """A binary frame."""

    stream: int
    tensor: int
    last: bool
    data: memoryview


def read_frame(data: bytes) -> Frame:
    """Read a binary frame.

    Raises:
        ApiError: it is too short, or has flags that are not known.
    """
    if len(data) < HEAD.size:
        raise ApiError(400, f"expected a binary frame of at least {HEAD.size} bytes, came {len(data)}", "bad_input")
    stream, tensor, flags = HEAD.unpack_from(data)
    if flags & ~LAST:
        raise ApiError(400, f"expected flags 0 or {LAST} in a binary frame, came {flags}", "bad_input")
    return Frame(stream, tensor, bool(flags & LAST), memoryview(data)[HEAD.size :])


@dataclass(frozen=True)
class Expected:
    """A tensor that a stream begins with."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytearray) -> Array:
        """The tensor from its bytes, in the byte order of this host.

        Raises:
            ApiError: the bytes are not as many as the shape says.
        """
        if len(data) != self.size_bytes:
            raise ApiError(400, f"{self.name}: expected {self.size_bytes} bytes, came {len(data)}", "bad_input")
        found = np.frombuffer(bytes(data), self.dtype)
        return found.astype(self.dtype.newbyteorder("="), copy=False).reshape(self.shape)


@dataclass(frozen=True)
class AudioForm:
    """Samples that a stream begins with.

    Attributes:
        name: "s16le" or "f32le".
        live: whether words are wanted before their window ends.
    """

    name: str
    live: bool

    def samples(self, data: bytes) -> Samples:
        """The samples of some bytes.

        Raises:
            ApiError: they are no whole samples.
        """
        if len(data) % _AUDIO[self.name]:
            raise ApiError(400, f"audio: expected whole samples of {self.name}, came {len(data)} bytes", "bad_input")
        return to_samples(data, self.name)


@dataclass(frozen=True)
class Opening:
    """A stream that a client opens.

    Attributes:
        stream: the client's number of it.
        options: choices.
        prompt: tokens to go on from; none is the model's own prompt.
        generated: tokens that the client has already.
        inputs: tensors that come in binary frames.
        audio: what comes in binary frames if that is audio.
        plan: whose cut the tensors cross.
    """

    stream: int
    options: GenerationOptions
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    inputs: tuple[Expected, ...]
    audio: AudioForm | None
    plan: str


def read_opening(stream: int, fields: Fields, facts: ModelFacts, tokenizer: Tokenizer) -> Opening:
    """Check what opens a stream, without the fields `type`, `stream` and `model`.

    Raises:
        ApiError, ConfigError: a field has a wrong value, or the model does not take such inputs.
    """
    given = fields.raw("options") or {}
    if not isinstance(given, Mapping):
        raise wrong("options", "an object", given)
    options = options_from_json(given)
    audio, tensors, prompt = fields.raw("audio"), fields.raw("tensors"), fields.raw("prompt")
    generated = _tokens("generated", fields.raw("generated"), facts)
    plan = fields.choice("plan", facts.cuts, next(iter(facts.cuts))) if tensors is not None and facts.cuts else ""
    fields.end()
    if sum(each is not None for each in (audio, tensors)) > 1:
        raise ApiError(400, "expected audio or tensors, came both; open two streams", "invalid_value", "audio")
    if audio is None and tensors is None and prompt is None:
        raise ApiError(400, "expected audio, tensors or prompt: what is the stream to go on from?", "invalid_value")
    if audio is not None and facts.kind != "speech":
        raise ApiError(400, f"{facts.name} does not listen; give it a prompt", "wrong_model", "audio")
    form = _audio(audio) if audio is not None else None
    inputs = _tensors(tensors or [], facts.cuts.get(plan, {}))
    asked = tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else _tokens("prompt", prompt, facts)
    if len(asked) + len(generated) >= facts.max_positions:
        raise ApiError(400, f"{facts.name} takes {facts.max_positions} tokens; give fewer", "context_length_exceeded")
    return Opening(stream, options, asked, generated, inputs, form, plan)


def _tokens(name: str, given: Any, facts: ModelFacts) -> tuple[int, ...]:
    listed = [] if given is None else given
    fits = isinstance(listed, list) and all(type(each) is int and 0 <= each < facts.vocabulary for each in listed)
    if not fits:
        raise wrong(name, f"a list of tokens from 0 to {facts.vocabulary - 1}", given)
    return tuple(listed)


def _audio(given: Any) -> AudioForm:
    if not isinstance(given, Mapping):
        raise wrong("audio", 'an object such as {"format": "s16le", "rate": 16000}', given)
    fields = Fields(given)
    form = AudioForm(fields.choice("format", _AUDIO, "s16le"), fields.flag("live"))
    rate = fields.whole("rate", RATE_HZ, 1, 1 << 20)
    fields.end()
    if rate != RATE_HZ:
        raise ApiError(
            400, f"rate: expected {RATE_HZ} samples a second of one channel, came {rate}; resample", "bad_input", "rate"
        )
    return form


def _tensors(given: Any, cut: Cut) -> tuple[Expected, ...]:
    if not isinstance(given, list) or len(given) > MAX_TENSORS:
        raise wrong("tensors", f"a list of at most {MAX_TENSORS}", given)
    found = tuple(_tensor(each, cut) for each in given)
    if len({each.name for each in found}) != len(found) or (found and len(found) != len(cut)):
        raise wrong("tensors", f"each of {', '.join(cut)} once", [each.name for each in found])
    return found


def _tensor(given: Any, cut: Cut) -> Expected:
    if not isinstance(given, Mapping):
        raise wrong("tensors", "objects with name, dtype and shape", given)
    fields = Fields(given)
    name, dtype, shape = (
        fields.text("name", longest=256),
        fields.choice("dtype", _DTYPES, "float32"),
        fields.raw("shape"),
    )
    fields.end()
    known = cut.get(name)
    if known is None:
        raise wrong("tensors", f"one of {', '.join(cut) or 'none: this model takes no tensors'}", name)
    sizes = isinstance(shape, list) and all(type(size) is int and 0 < size < 1 << 31 for size in shape)
    fits = sizes and len(shape) == len(known[1])
    if (
        not fits
        or any(want not in (None, size) for want, size in zip(known[1], shape, strict=True))
        or dtype != known[0]
    ):
        raise wrong("tensors", f"{name} as {known[0]} {list(known[1])}", f"{dtype} {shape}")
    return Expected(name, _DTYPES[dtype], tuple(shape))
