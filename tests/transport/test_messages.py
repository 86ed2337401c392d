"""Encoding: golden bytes of version 1, limits in both directions, evolution, and fuzzers."""

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import (
    _SCHEMAS,
    ITEM_SIZE_BYTES,
    MAX_HEADER_BYTES,
    MAX_INLINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MESSAGE_TYPES,
    VERSION,
    Attach,
    BundleOffer,
    BundlePart,
    BundleRetire,
    BundleStatus,
    Bye,
    Cancel,
    Chunk,
    Credit,
    Done,
    Drain,
    Failed,
    Frame,
    Have,
    Hello,
    Hop,
    HopTiming,
    LinkGauge,
    Message,
    Open,
    PeerAddress,
    Ping,
    Pong,
    Probe,
    Reject,
    TensorHeader,
    Tokens,
    Welcome,
    agreed_version,
    decode,
    encode,
)

GOLDEN = Path(__file__).parent / "golden"
INSTANCE = "00112233445566778899aabbccddeeff"
DIGEST = "sha256:" + "ab" * 32
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"

SAMPLES: dict[str, Message] = {
    "hello": Hello(
        version_min=(1, 0),
        version_max=(1, 2),
        instance=INSTANCE,
        role="session",
        bundle=DIGEST,
        heartbeat_ms=500,
        peers={"edge": PeerAddress("tcp://10.0.0.2:7000", KEY), "cloud": PeerAddress("tcp://cloud.example:7000")},
        features=("zstd",),
    ),
    "welcome": Welcome((1, 0), INSTANCE, 7, DIGEST, "edge", 268435456, 262144, ("zstd",)),
    "reject": Reject("bundle", "this worker serves another bundle"),
    "failed": Failed("s-1", 42, 1, "edge", "engine", "out of memory", retryable=True),
    "cancel": Cancel("s-1", 42, 1),
    "done": Done("s-1", 42),
    "ping": Ping(3, 1_700_000_000_000_000),
    "pong": Pong(3, 1_700_000_000_000_000, queue=2, epoch=7),
    "drain": Drain("new bundle"),
    "bye": Bye("shutting down"),
    "attach": Attach(INSTANCE),
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=1,
        epoch=7,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a",)), Hop("edge", "", ("a", "b")), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 2), 12), TensorHeader("b", "uint8", (0, 4), 0)),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12),),
        outputs=("y",),
    ),
    "chunk": Chunk("s-1", 42, 1, 1, tensor=0, offset=0, crc32=0x1DB55E4A, payload=b"twelve bytes"),
}

SINCE_1_1: dict[str, Message] = {
    "hello": Hello((1, 0), (1, 1), INSTANCE, "worker", DIGEST, 500, {}, ("credit",), credit_bytes=8 << 20),
    "welcome": Welcome(
        (1, 1),
        INSTANCE,
        7,
        DIGEST,
        "edge",
        268435456,
        262144,
        ("credit",),
        credit_bytes=4 << 20,
        slowdown_permille=12_500,
    ),
    "pong": Pong(3, 5, 2, 7, wait_us=1500, held_bytes=1 << 20, links=(LinkGauge("cloud", 2_500_000, 41_000, 5),)),
    "drain": Drain("new bundle", bundle=DIGEST, successor="sha256:" + "cd" * 32),
    "credit": Credit(received_bytes=3 << 20, limit_bytes=11 << 20, held_us=900),
    "have": Have("s-1", 42, 2, 1, (12, 0)),
    "bundle_offer": BundleOffer("ab" * 32, DIGEST, 1 << 30),
    "bundle_status": BundleStatus(DIGEST, "partial", 1 << 20, "8 % are here"),
    "bundle_retire": BundleRetire(DIGEST, "sha256:" + "cd" * 32),
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=2,
        epoch=8,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a",)), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 2), 12),),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12, batch=4),),
        bundle=DIGEST,
        resume=True,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    "open_inline": Open(
        sid="s-1",
        rid=42,
        attempt=1,
        epoch=8,
        plan="plan-3",
        hop=1,
        route=(Hop("phone", "p0", ("a", "b")), Hop("cloud", "p2")),
        tensors=(TensorHeader("a", "float16", (1, 3, 1), 6), TensorHeader("b", "uint8", (2, 3), 6)),
        deadline_ms=250,
        trace=(HopTiming("phone", "p0", 10, 2000, 0, 12),),
        inline_crc32=zlib.crc32(b"twelve bytes"),
        payload=b"twelve bytes",
    ),
    "chunk": Chunk("s-1", 42, 1, 1, 0, 0, 0x1DB55E4A, squeeze="zstd", raw_bytes=4096, payload=b"twelve bytes"),
    "bundle_part": BundlePart(DIGEST, 1 << 20, 0x1DB55E4A, payload=b"twelve bytes"),
    "probe": Probe(9, 65536, payload=b"\0" * 16),
}


SINCE_1_2: dict[str, Message] = {
    "open": Open(
        sid="s-1",
        rid=42,
        attempt=2,
        epoch=8,
        plan="plan1",
        hop=1,
        route=(Hop("phone", "", ("hidden", "tokens")), Hop("cloud")),
        tensors=(TensorHeader("hidden", "float32", (1, 3, 2), 24), TensorHeader("tokens", "int64", (2,), 16)),
        deadline_ms=250,
        bundle=DIGEST,
        generation='{"stream":"7","delivered":1,"max_tokens":9}',
    ),
    "failed": Failed("s-1", 42, 2, "cloud", "busy", "64 streams wait", retryable=True, retry_ms=1500),
    "tokens": Tokens("s-1", 42, 2, 17, (0, 50256, 2**53 - 1)),
    "tokens_last": Tokens("s-1", 42, 2, 20, (2,), last=True, reason="stop", wait_us=900, run_us=4100, batch=16),
    "tokens_scored": Tokens(
        "s-1", 42, 2, 0, (2, 5), last=True, reason="stop", costs=(0, 9, 2**32 - 1), no_speech=600_000
    ),
}

FUZZED: dict[str, Message] = SAMPLES | {f"{name} of 1.2": message for name, message in SINCE_1_2.items()}


def header_of(name: str) -> dict[str, object]:
    header: dict[str, object] = msgpack.unpackb(encode(FUZZED[name])[0])  # type: ignore[attr-defined,no-untyped-call]
    return header


def frames_of(name: str, **changes: object) -> list[Frame]:
    header = {key: value for key, value in (header_of(name) | changes).items() if value is not Ellipsis}
    packed: bytes = msgpack.packb(header)  # type: ignore[no-untyped-call]
    return [packed, *encode(FUZZED[name])[1:]]


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


def test_pong_of_an_older_peer_has_defaults() -> None:
    assert decode(frames_of("pong", queue=..., epoch=...)) == Pong(3, 1_700_000_000_000_000)


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


def test_messages_do_not_share_what_can_change() -> None:
    one, other = (decode(frames_of("hello", peers=...)) for _ in range(2))
    assert isinstance(one, Hello)
    assert isinstance(other, Hello)
    assert one.peers is not other.peers


def checked(message: Any) -> Any:
    if hasattr(message, "check_wire"):
        message.check_wire()
    return message


def told(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ProtocolError as exc:
        return str(exc)
