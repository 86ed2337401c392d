"""Encoding: golden bytes of each version, limits in both directions, evolution."""

import dataclasses
import zlib
from pathlib import Path

import msgpack
import pytest
from tests.transport.message_samples import SAMPLES, SINCE_1_1, SINCE_1_2, frames_of

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import (
    ITEM_SIZE_BYTES,
    MAX_HEADER_BYTES,
    MAX_INLINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MESSAGE_TYPES,
    VERSION,
    Cancel,
    Chunk,
    Failed,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    TensorHeader,
    Tokens,
    agreed_version,
    decode,
    encode,
)

GOLDEN = Path(__file__).parent / "golden"


def test_every_type_has_a_sample() -> None:
    assert {type(message) for message in (*SAMPLES.values(), *SINCE_1_1.values(), *SINCE_1_2.values())} == set(
        MESSAGE_TYPES.values()
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes_of_version_1(name: str) -> None:
    golden = [bytes.fromhex(line) for line in (GOLDEN / f"{name}.v1.hex").read_text().split()]
    assert [bytes(frame) for frame in encode(SAMPLES[name])] == golden
    assert decode(golden) == SAMPLES[name]


@pytest.mark.parametrize("name", SINCE_1_1)
def test_golden_bytes_of_version_1_1(name: str) -> None:
    golden = [bytes.fromhex(line) for line in (GOLDEN / f"{name}.v1_1.hex").read_text().split()]
    assert [bytes(frame) for frame in encode(SINCE_1_1[name])] == golden
    assert decode(golden) == SINCE_1_1[name]


@pytest.mark.parametrize("name", SINCE_1_2)
def test_golden_bytes_of_version_1_2(name: str) -> None:
    golden = [bytes.fromhex(line) for line in (GOLDEN / f"{name}.v1_2.hex").read_text().split()]
    assert [bytes(frame) for frame in encode(SINCE_1_2[name])] == golden
    assert decode(golden) == SINCE_1_2[name]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("open", {"generation": "x" * 8193}),
        ("open", {"generation": {"max_tokens": 9}}),
        ("failed", {"retry_ms": -1}),
        ("tokens", {"tokens": [0] * 1025}),
        ("tokens", {"tokens": [-1]}),
        ("tokens", {"tokens": [1.0]}),
        ("tokens", {"tokens": [True]}),
        ("tokens", {"tokens": b"\x01"}),
        ("tokens", {"offset": -1}),
        ("tokens", {"last": 1}),
        ("tokens", {"reason": "x" * 65}),
        ("tokens", {"batch": 0}),
        ("tokens", {"run_us": -1}),
        ("tokens_scored", {"costs": [1]}),
        ("tokens_scored", {"costs": [1, 2, 3, 4]}),
        ("tokens_scored", {"last": False}),
        ("tokens_scored", {"costs": [1, 2, 2**32]}),
        ("tokens_scored", {"no_speech": 1_000_001}),
    ],
)
def test_fields_of_streams_out_of_bounds_are_refused(name: str, changes: dict[str, object]) -> None:
    header: dict[str, object] = msgpack.unpackb(encode(SINCE_1_2[name])[0])  # type: ignore[attr-defined,no-untyped-call]
    packed: bytes = msgpack.packb(header | changes)  # type: ignore[no-untyped-call]
    with pytest.raises(ProtocolError):
        decode([packed])


def test_messages_of_streams_as_large_as_allowed_travel_whole() -> None:
    opened, tokens = SINCE_1_2["open"], SINCE_1_2["tokens"]
    assert isinstance(opened, Open)
    assert isinstance(tokens, Tokens)
    for most in (
        dataclasses.replace(opened, generation="ü" * 4096),
        dataclasses.replace(tokens, tokens=(2**53 - 1,) * 1024),
    ):
        assert decode(encode(most)) == most


def test_the_version_agreed_on_is_the_highest_that_both_speak() -> None:
    assert agreed_version((1, 0), (1, 0)) == (1, 0)
    assert agreed_version((1, 0), (1, 1)) == (1, 1)
    assert agreed_version((1, 0), (1, 9)) == VERSION
    assert agreed_version((1, 0), (3, 2)) == VERSION
    assert agreed_version((2, 0), (2, 1)) is None
    assert agreed_version((0, 1), (0, 9)) is None


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_keys_are_ignored_and_defaults_fill_in(name: str) -> None:
    assert decode(frames_of(name, future={"any": ["thing", 1]})) == SAMPLES[name]
    message = SAMPLES[name]
    for field in dataclasses.fields(message):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name in ("payload", "inline_crc32"):
            continue
        if has_default:
            loaded = decode(frames_of(name, **{field.name: ...}))
            assert getattr(loaded, field.name) == ({} if field.name == "peers" else field.default)
        else:
            with pytest.raises(ProtocolError, match=field.name):
                decode(frames_of(name, **{field.name: ...}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ping", {"seq": -1}),
        ("ping", {"seq": True}),
        ("ping", {"seq": 2**53}),
        ("ping", {"seq": 1.0}),
        ("ping", {"seq": None}),
        ("ping", {"type": "XX"}),
        ("ping", {"type": 7}),
        ("ping", {"type": ...}),
        ("cancel", {"sid": "x" * 65}),
        ("cancel", {"sid": "ü" * 33}),
        ("cancel", {"sid": b"bytes"}),
        ("failed", {"reason": "x" * 1025}),
        ("failed", {"retryable": 1}),
        ("hello", {"instance": "short"}),
        ("hello", {"instance": "G" * 32}),
        ("hello", {"role": "admin"}),
        ("hello", {"version_min": [1]}),
        ("hello", {"version_min": [1, 2, 3]}),
        ("hello", {"version_min": 1}),
        ("hello", {"heartbeat_ms": 0}),
        ("hello", {"peers": []}),
        ("hello", {"peers": {"edge": "tcp://x:1"}}),
        ("hello", {"peers": {"edge": {"address": "tcp://x:1", "server_key": "short"}}}),
        ("hello", {"peers": {f"t{i}": {"address": ""} for i in range(17)}}),
        ("hello", {"features": ["x"] * 65}),
        ("hello", {"features": "zstd"}),
        ("open", {"hop": 3}),
        ("open", {"hop": 16}),
        ("open", {"route": []}),
        ("open", {"tensors": [{"name": "a", "dtype": "float32", "shape": [2], "size_bytes": 9}]}),
        ("open", {"tensors": [{"name": "a", "dtype": "object", "shape": [1], "size_bytes": 8}]}),
        ("open", {"tensors": [{"name": "a", "dtype": "uint8", "shape": [1] * 9, "size_bytes": 1}]}),
        ("open", {"tensors": [{"name": "a", "dtype": "uint8", "shape": [2**53 - 1] * 8, "size_bytes": 0}]}),
        ("open", {"tensors": [{"name": "a", "dtype": "uint8", "shape": [-1], "size_bytes": -1}]}),
        ("open", {"outputs": ["x" * 257]}),
        ("open", {"tensors": [{"name": "a", "dtype": "bool", "shape": [0, 2**53 - 1, 2], "size_bytes": 0}]}),
        ("open", {"tensors": [{"name": "a", "dtype": "bool", "shape": [1], "size_bytes": 1}] * 2}),
        ("open", {"route": [{"tier": "phone", "carry": ["a", "b", "a"]}, {"tier": "edge"}]}),
        ("chunk", {"crc32": 2**32}),
        ("chunk", {"tensor": 256}),
        ("chunk", {"squeeze": "gzip", "raw_bytes": 5}),
        ("chunk", {"squeeze": "zstd"}),
        ("chunk", {"raw_bytes": 5}),
        ("chunk", {"squeeze": "zstd", "raw_bytes": MAX_PAYLOAD_BYTES + 1}),
        ("hello", {"credit_bytes": -1}),
        ("welcome", {"slowdown_permille": 1e9}),
        ("open", {"traceparent": "00-zz"}),
        ("open", {"resume": 1}),
        ("open", {"inline_crc32": 5}),
        ("open", {"inline_crc32": None}),
        ("pong", {"links": [{"tier": "cloud", "bytes_per_s": 1, "rtt_us": 1, "loss_permille": 1001}]}),
    ],
)
def test_fields_out_of_bounds_are_refused(name: str, changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames_of(name, **changes))


@pytest.mark.parametrize(
    ("size", "crc", "change"),
    [
        (12, None, {}),
        (0, 0, {}),
        (11, 0, {}),
        (13, 0, {}),
        (12, -1, {}),
        (12, 2**32, {}),
        (12, True, {}),
        (12, 0, {"resume": True}),
        (0, None, {"tensors": ()}),
        (
            MAX_INLINE_BYTES + 1,
            0,
            {"tensors": [{"name": "a", "dtype": "uint8", "shape": [65537], "size_bytes": 65537}]},
        ),
    ],
)
def test_an_open_with_a_payload_has_all_its_tensors_and_their_checksum(
    size: int, crc: int | None, change: dict[str, object]
) -> None:
    header: dict[str, object] = msgpack.unpackb(encode(SINCE_1_1["open_inline"])[0])  # type: ignore[attr-defined,no-untyped-call]
    header |= change
    header.pop("inline_crc32")
    header |= {} if crc is None else {"inline_crc32": crc}
    packed: bytes = msgpack.packb(header)  # type: ignore[no-untyped-call]
    with pytest.raises(ProtocolError):
        decode([packed, bytes(size)])


def test_an_open_as_large_as_allowed_travels_whole() -> None:
    opened = SINCE_1_1["open_inline"]
    assert isinstance(opened, Open)
    whole = (TensorHeader("a", "uint8", (MAX_INLINE_BYTES,), MAX_INLINE_BYTES),)
    most = dataclasses.replace(opened, tensors=whole, inline_crc32=0, payload=bytes(MAX_INLINE_BYTES))
    assert decode(encode(most)) == most
    for beyond in (
        dataclasses.replace(most, inline_crc32=None),
        dataclasses.replace(most, payload=bytes(5)),
        dataclasses.replace(most, payload=b""),
        dataclasses.replace(most, resume=True),
    ):
        with pytest.raises(InternalError):
            encode(beyond)


def test_frames_are_counted_and_measured() -> None:
    ping, chunk = encode(SAMPLES["ping"]), encode(SAMPLES["chunk"])
    for frames in (
        [],
        [b""],
        [*ping, b""],
        [*ping, b"x"],
        [chunk[0]],
        [chunk[0], b""],
        [*chunk, b""],
        [chunk[0], bytes(MAX_PAYLOAD_BYTES + 1)],
        [bytes(MAX_HEADER_BYTES + 1)],
        [bytes(ping[0]) + b"\0"],
        [b"\xc1"],
        [b"\x93\x01\x02\x03"],
        [b"\x81\x01\x02"],
        [b"\xdf\xff\xff\xff\xff"],
        [b"\x91" * 5000],
    ):
        with pytest.raises(ProtocolError):
            decode(frames)


def test_text_for_people_is_cut_and_cleaned() -> None:
    sent = Failed("s", 1, 0, "edge", "engine", "é" * 2000 + "\n")
    received = decode(encode(sent))
    assert isinstance(received, Failed)
    assert received.reason == "é" * 512
    hostile = decode(frames_of("failed", reason="a\x1b[2Jb\nc"))
    assert isinstance(hostile, Failed)
    assert hostile.reason == "a [2Jb c"


def test_what_breaks_the_limits_is_not_sent() -> None:
    chunk, opened = SAMPLES["chunk"], SAMPLES["open"]
    assert isinstance(chunk, Chunk)
    assert isinstance(opened, Open)
    many = tuple(TensorHeader("x" * 250 + str(i), "uint8", (1,), 1) for i in range(256))
    beyond: list[Message] = [
        Cancel("x" * 65, 1, 0),
        Ping(-1, 0),
        Hello((1, 0), (1, 0), "no hex", "session", "", 1),
        dataclasses.replace(chunk, payload=b""),
        dataclasses.replace(chunk, payload=bytes(MAX_PAYLOAD_BYTES + 1)),
        dataclasses.replace(opened, tensors=(TensorHeader("a", "float32", (2,), 4),)),
        dataclasses.replace(opened, tensors=many),
    ]
    for message in beyond:
        with pytest.raises(InternalError):
            encode(message)


def test_payload_is_passed_on_and_not_copied() -> None:
    payload = memoryview(bytearray(100_000))
    frames = encode(Chunk("s", 1, 0, 0, 0, 0, zlib.crc32(payload), payload=payload))
    assert frames[1] is payload


def test_item_sizes_agree_with_numpy() -> None:
    import ml_dtypes  # noqa: F401 - registers bfloat16 and the float8 names
    import numpy as np

    assert {name: np.dtype(name).itemsize for name in ITEM_SIZE_BYTES} == ITEM_SIZE_BYTES


def test_pong_of_an_older_peer_has_defaults() -> None:
    assert decode(frames_of("pong", queue=..., epoch=...)) == Pong(3, 1_700_000_000_000_000)


def test_messages_do_not_share_what_can_change() -> None:
    one, other = (decode(frames_of("hello", peers=...)) for _ in range(2))
    assert isinstance(one, Hello)
    assert isinstance(other, Hello)
    assert one.peers is not other.peers
