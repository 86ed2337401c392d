"""How a request's inputs could travel other than raw: pictures as JPEG or WebP, other floats as fp16.

A form is a baseline, not something that the planner chooses: a lossy picture changes the answer. Its figures are in
`data/input_codecs.json`, measured by `bench/input_codecs.py`; work is bytes moved, so that it scales with a device's
memory bandwidth as that of the activation codecs does (`flagsplit.splitter.codecs`). What a form does to a plan's
latency is in `flagsplit.splitter.baselines`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flagsplit.splitter.codecs import CODEC_COSTS

_TABLE = Path(__file__).parent / "data" / "input_codecs.json"
_PICTURE_TYPES = ("float32", "float16", "uint8")
_LEAST_SIDE = 32
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class InputTensor:
    """A graph input as the user knows it: NumPy element type, and its shape at the nominal sizes, elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def picture(self) -> tuple[int, int] | None:
        """Pixels of all pictures in it and their channels; None if it does not look like pictures.

        Pictures are NCHW or NHWC with 1 or 3 channels and sides of at least 32, of floats or bytes.
        """
        if self.dtype not in _PICTURE_TYPES or len(self.shape) != 4:
            return None
        count, *rest = self.shape
        for channels, height, width in (rest, (rest[2], rest[0], rest[1])):
            if channels in (1, 3) and min(height, width) >= _LEAST_SIDE:
                return count * height * width, channels
        return None


@dataclass(frozen=True)
class Coded:
    """One input in another form: its bytes, and the bytes that its sender and its receiver move to code it."""

    size_bytes: int
    encode_bytes: float
    decode_bytes: float


@dataclass(frozen=True)
class InputForm:
    """A form that some of a graph's inputs can take.

    Attributes:
        name: "JPEG", "WebP" or "fp16".
        coded: by input name; inputs that are not in it travel raw.
        note: what to know before using it.
    """

    name: str
    coded: Mapping[str, Coded]
    note: str


def forms_of(inputs: Sequence[InputTensor]) -> tuple[InputForm, ...]:
    """The forms that fit: JPEG and WebP where an input looks like a picture, else fp16 where one is float32."""
    pictures = {each.name: each.picture for each in inputs if each.picture is not None}
    if pictures:
        note = "quality 90; the answer changes"
        return tuple(
            InputForm(form, {name: _as_picture(table, *seen) for name, seen in pictures.items()}, note)
            for form, table in _forms().items()
        )
    floats = {each.name: _as_halves(each) for each in inputs if each.dtype == "float32"}
    return (InputForm("fp16", floats, "the answer changes a little"),) if floats else ()


def _as_picture(table: Mapping[str, Any], pixels: int, channels: int) -> Coded:
    figures, work = table[str(channels)], _table()["work_bandwidth"]["value"]
    raw = pixels * channels
    return Coded(
        size_bytes=round(pixels * figures["size"]["value"] / 8),
        encode_bytes=raw * work / figures["encode"]["value"],
        decode_bytes=raw * work / figures["decode"]["value"],
    )


def _as_halves(tensor: InputTensor) -> Coded:
    size = _FLOAT_BYTES
    for side in tensor.shape:
        size *= side
    cost = CODEC_COSTS["fp16"]
    return Coded(size // 2, size * cost.encode_passes, size * cost.decode_passes)


def _forms() -> Mapping[str, Mapping[str, Any]]:
    forms: Mapping[str, Mapping[str, Any]] = _table()["forms"]
    return forms


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(_TABLE.read_bytes())
    return table
