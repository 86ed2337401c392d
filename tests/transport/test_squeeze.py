"""Squeezing and back: round trips, and payloads of which nothing can be believed."""

import random
import threading
import tracemalloc
from collections.abc import Callable

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import FEATURES, LZ4, MAX_PAYLOAD_BYTES, ZSTD
from flagsplit.transport.squeeze import KINDS, SqueezeSpeed, host_speeds, measure_speeds, squeeze, unsqueeze

BOTH = pytest.mark.parametrize("kind", KINDS)
MIB = MAX_PAYLOAD_BYTES


def activations(size: int, seed: int = 0) -> bytes:
    """Bytes as they are after a ReLU and a quantization: many zeros."""
    normal = np.random.default_rng(seed).standard_normal(size)
    return np.clip(normal * 40, 0, 255).astype(np.uint8).tobytes()


def test_kinds_are_features() -> None:
    assert set(KINDS) == {ZSTD, LZ4}
    assert set(KINDS) <= set(FEATURES)


@BOTH
@settings(deadline=None)
@given(st.binary(min_size=1, max_size=2000), st.integers(1, 40))
def test_round_trip(kind: str, data: bytes, times: int) -> None:
    raw = data * times
    small = squeeze(memoryview(raw), kind)
    if len(small) < len(raw):
        assert unsqueeze(memoryview(small), kind, len(raw)) == raw
    else:
        with pytest.raises(ProtocolError, match="does not shrink"):
            unsqueeze(small, kind, len(raw))


@BOTH
def test_the_largest_payload(kind: str) -> None:
    raw = activations(MIB)
    small = squeeze(raw, kind)
    assert len(small) < 0.95 * MIB
    assert unsqueeze(small, kind, MIB) == raw


def test_what_cannot_be_squeezed_is_our_bug() -> None:
    for payload, kind in ((b"", ZSTD), (bytes(MIB + 1), LZ4), (b"x", "gzip"), (b"x", "")):
        with pytest.raises(InternalError, match="expected 1"):
            squeeze(payload, kind)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def streamed(size: int) -> bytes:
    """A frame that does not say how much it holds."""
    made = zstandard.ZstdCompressor().compressobj()
    return made.compress(bytes(size)) + made.flush()


def wide_window() -> bytes:
    """A frame of one block that asks for a window of 128 MiB."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x80, 17 << 3]) + (4096).to_bytes(4, "little") + b"\x03\x80\x00\x00"


def with_dictionary() -> bytes:
    """A frame that names dictionary 7."""
    frame = bytearray(zstd(bytes(5000)))
    frame[4] |= 1
    frame.insert(5, 7)
    return bytes(frame)


def lying_bomb() -> bytes:
    """A frame that says 1 MiB and holds more."""
    frame = bytearray(zstd(bytes(MIB + 5000)))
    assert frame[4] & 0xE0 == 0xA0, "one segment, and 4 bytes that say its size"
    frame[5:9] = MIB.to_bytes(4, "little")
    return bytes(frame)


LIES: dict[str, tuple[bytes, str, int]] = {
    "bomb": (zstd(bytes(16 << 20)), ZSTD, MIB),
    "bomb that lies": (lying_bomb(), ZSTD, MIB),
    "lz4 bomb": (lz4.block.compress(bytes(16 << 20), store_size=False), LZ4, MIB),
    "more than announced": (zstd(bytes(5000)), ZSTD, 4999),
    "less than announced": (zstd(bytes(5000)), ZSTD, 5001),
    "lz4 more than announced": (lz4.block.compress(bytes(5000), store_size=False), LZ4, 4999),
    "lz4 less than announced": (lz4.block.compress(bytes(5000), store_size=False), LZ4, 5001),
    "lz4 with a length before it": (lz4.block.compress(bytes(5000)), LZ4, 5000),
    "no content size": (streamed(5000), ZSTD, 5000),
    "two frames": (zstd(bytes(5000)) * 2, ZSTD, 5000),
    "bytes after the frame": (zstd(bytes(5000)) + b"more", ZSTD, 5000),
    "skippable frame": (b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + bytes(8), ZSTD, 5000),
    "dictionary": (with_dictionary(), ZSTD, 5000),
    "window": (wide_window(), ZSTD, 4096),
    "cut frame": (zstd(activations(5000))[:-7], ZSTD, 5000),
    "cut header": (zstd(bytes(5000))[:5], ZSTD, 5000),
    "cut lz4": (lz4.block.compress(activations(5000), store_size=False)[:-7], LZ4, 5000),
    "empty": (b"", ZSTD, 5000),
    "empty lz4": (b"", LZ4, 5000),
    "other kind": (zstd(bytes(5000)), LZ4, 5000),
    "unknown kind": (b"x", "gzip", 5000),
    "nothing": (b"", ZSTD, 0),
    "too much": (zstd(bytes(MIB + 1)), ZSTD, MIB + 1),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_and_cost_nothing(name: str) -> None:
    payload, kind, raw_bytes = LIES[name]
    assert traced_peak(lambda: refused(payload, kind, raw_bytes)) < 2 * MIB + (64 << 10)


def refused(payload: bytes, kind: str, raw_bytes: int) -> None:
    with pytest.raises(ProtocolError):
        unsqueeze(payload, kind, raw_bytes)


def traced_peak(call: Callable[[], None]) -> int:
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def mutated(rng: random.Random, payload: bytes) -> bytes:
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(data)) if data else 0
        act = rng.randrange(5)
        if act == 0 and data:
            data[at] = rng.randrange(256)
        elif act == 1 and data:
            data[min(at, rng.randrange(18)) % len(data)] ^= 1 << rng.randrange(8)
        elif act == 2:
            del data[at : at + rng.choice((1, 3, 100))]
        elif act == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        else:
            data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"))
    return bytes(data)


@pytest.mark.slow
@BOTH
def test_thousands_of_mutated_payloads(kind: str) -> None:
    """Each becomes exactly what was announced or a ProtocolError, and never takes more memory than that."""
    rng = random.Random(71)
    raws = [activations(300, 1), activations(5000, 2), bytes(9000), b"abcabcabd" * 700, rng.randbytes(400) * 9]
    valid = [(squeeze(raw, kind), len(raw)) for raw in raws]
    tracemalloc.start()
    outcomes = {True: 0, False: 0}
    try:
        for _ in range(3000):
            payload, raw_bytes = rng.choice(valid)
            announced = rng.choice((raw_bytes, raw_bytes, raw_bytes + rng.randrange(-9, 9), rng.randrange(1, MIB)))
            try:
                raw = unsqueeze(mutated(rng, payload), kind, announced)
            except ProtocolError:
                outcomes[False] += 1
            else:
                outcomes[True] += 1
                assert len(raw) == announced
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB + (256 << 10)
    finally:
        tracemalloc.stop()
    assert outcomes[False] > 1000
    # After all that the same coders still work.
    assert [unsqueeze(small, kind, size) for small, size in valid] == raws


@BOTH
def test_threads_do_not_share_coders(kind: str) -> None:
    raws = [activations(40_000, seed) for seed in range(4)]
    right: list[bool] = []

    def work(seed: int) -> None:
        right.extend(unsqueeze(squeeze(raws[seed], kind), kind, 40_000) == raws[seed] for _ in range(10))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_speeds_come_from_the_clock() -> None:
    ticks = iter(range(1000))
    speeds = measure_speeds(lambda: float(next(ticks)))
    assert speeds == dict.fromkeys(KINDS, SqueezeSpeed(256 << 10, 256 << 10))
    assert speeds[LZ4].cost_s_per_byte == 2 / (256 << 10)
    assert host_speeds() is host_speeds()
