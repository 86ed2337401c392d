"""Messages that are damaged at random are refused or messages; the quick codec and the slow one agree."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.transport.message_samples import FUZZED, SAMPLES, frames_of, header_of

from flagsplit.errors import ProtocolError
from flagsplit.transport.messages import _SCHEMAS, Frame, decode, encode


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes_are_refused_or_a_message(frames: list[bytes]) -> None:
    decode_is_safe(list(frames))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FUZZED)), st.data())
def test_mutated_messages_are_refused_or_a_message(name: str, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in encode(FUZZED[name])]
    for _ in range(data.draw(st.integers(1, 4))):
        header = frames[0]
        at = data.draw(st.integers(0, len(header) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            header[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(header) > 2:
            del header[at]
        else:
            header.insert(at, data.draw(st.integers(0, 255)))
    decode_is_safe([bytes(frame) for frame in frames])


_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FUZZED)), st.data())
def test_fields_of_any_type_are_refused_or_a_message(name: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(header_of(name))))
    decode_is_safe(frames_of(name, **{key: data.draw(_anything)}))


def decode_is_safe(frames: list[Frame]) -> None:
    try:
        message = decode(frames)
    except ProtocolError:
        return
    assert decode(encode(message)) == message


@settings(deadline=None)
@given(st.sampled_from(sorted(FUZZED)), st.data())
def test_the_quick_way_says_what_the_slow_way_says(name: str, data: st.DataObject) -> None:
    header = header_of(name)
    schema = _SCHEMAS[type(FUZZED[name])]
    key = data.draw(st.sampled_from(sorted(header)))
    changed = data.draw(st.sampled_from(["keep", "drop", "replace"]))
    if changed == "drop":
        del header[key]
    elif changed == "replace":
        header[key] = data.draw(_anything)
    assert told(lambda: schema.load(header)) == told(lambda: checked(schema._load_slowly(header, {})))


def test_the_quick_way_writes_what_the_slow_way_writes() -> None:
    for message in SAMPLES.values():
        schema = _SCHEMAS[type(message)]
        assert list(schema.dump(message).items()) == list(schema._dump_slowly(message).items())


def checked(message: Any) -> Any:
    if hasattr(message, "check_wire"):
        message.check_wire()
    return message


def told(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ProtocolError as exc:
        return str(exc)
