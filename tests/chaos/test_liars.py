"""Clients that know the protocol and lie: about types, shapes, sizes, routes, squeezed bytes; again and too late.

Each is told that its request failed, or is cut off; the worker holds little meanwhile and serves the next client.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

import lz4.block
import numpy as np
import pytest
import zstandard
from tests.chaos.served import Oracle, Served
from tests.chaos.zmtp import RawPeer, wire

from flagsplit.runtime.bundle import Bundle
from flagsplit.transport.message_fields import MAX_HEADER_BYTES
from flagsplit.transport.messages import Cancel, Chunk, Done, Hop, HopTiming, Lane, Message, Open, TensorHeader, encode

pytestmark = pytest.mark.slow

_X = np.arange(48, dtype=np.float32).reshape(2, 24)
_TRACE = (HopTiming("phone", "", 0, 0, 0, 192),)
_VAST = 1 << 28


def _opened(bundle: Bundle, peer: RawPeer, **changes: object) -> Open:
    """The question of the plan that has the cloud do what it can."""
    (step,) = (step for step in bundle.plans.steps["plan1"] if step.tier == 2)
    route = (Hop("phone", "", step.inputs), Hop("cloud", step.segment, step.outputs), Hop("phone"))
    tensors = (TensorHeader(step.inputs[0], "float32", (2, 24), 192),)
    opened = Open(peer.instance, 1, 1, 0, "plan1", 1, route, tensors, 20_000, _TRACE, (), bundle.digest)
    return replace(opened, **changes)  # type: ignore[arg-type]


def _chunk(
    opened: Open, payload: bytes = _X.tobytes(), offset: int = 0, squeeze: str = "", raw_bytes: int = 0
) -> Chunk:
    crc32 = zlib.crc32(payload)
    return Chunk(
        opened.sid, opened.rid, opened.attempt, opened.hop, 0, offset, crc32, squeeze, raw_bytes, payload=payload
    )


def _announced(dtype: str, *shape: int) -> dict[str, object]:
    item_bytes = {"float32": 4, "bool": 1, "complex128": 16, "bfloat16": 2}[dtype]
    return {"tensors": (TensorHeader("a", dtype, shape, item_bytes * int(np.prod(shape))),)}


_LIES: dict[str, dict[str, object]] = {
    "another dtype": _announced("bfloat16", 4, 24),
    "a dtype that no engine has": _announced("complex128", 12),
    "fewer dimensions": _announced("float32", 48),
    "more dimensions": _announced("float32", 1, 2, 24),
    "another width": _announced("float32", 4, 12),
    "the wrong name": {"tensors": (TensorHeader("b", "float32", (2, 24), 192),)},
    "no tensor at all": {"tensors": ()},
    "a hop that is not the worker's": {"hop": 2},
    "no timings": {"trace": ()},
    "a segment that it has not": {"route": (Hop("phone", "", ("a",)), Hop("cloud", "s", ("c",)), Hop("phone"))},
    "a result that nobody makes": {"route": (Hop("phone", "", ("a",)), Hop("cloud", "", ("c",)), Hop("phone"))},
    "a route that ends there": {"route": (Hop("phone", "", ("a",)), Hop("cloud", "", ()))},
    "a tier that nobody knows": {"route": (Hop("phone", "", ("a",)), Hop("cloud", "", ("a",)), Hop("moon"))},
    "a tensor beyond the limit": _announced("bool", 1 << 29),
}


@pytest.mark.parametrize("lie", _LIES)
def test_a_lie_fails_its_own_request(bundle: Bundle, oracle: Oracle, plain_cloud: Served, lie: str) -> None:
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        opened = _opened(bundle, peer, **_LIES[lie])
        peer.say(opened)
        peer.say(_chunk(opened))
        peer.read_until(b"\xa2FA")
        honest = _opened(bundle, peer, rid=2)
        peer.say(honest)
        peer.say(_chunk(honest))
        peer.read_until(b"\xa2CH", Lane.DATA)
    oracle.check_serves(plain_cloud)


def test_an_announcement_that_outgrows_its_header(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        names = tuple(f"{number:0100}" for number in range(190))
        route = (Hop("phone", "", names), Hop("cloud", "", names), Hop("phone"))
        opened = _opened(
            bundle, peer, route=route, tensors=tuple(TensorHeader(name, "bool", (0,), 0) for name in names)
        )
        left_bytes = MAX_HEADER_BYTES - len(encode(opened)[0])
        assert left_bytes > 0
        padding, last = divmod(left_bytes - 8, 258)
        opened = replace(opened, outputs=("x" * 255,) * padding + ("x" * last,) * (last > 0))
        assert MAX_HEADER_BYTES - 60 < len(encode(opened)[0]) <= MAX_HEADER_BYTES
        peer.say(opened)
        peer.read_until(b"\xa2FA")
    oracle.check_serves(plain_cloud)


def _zstd(size_bytes: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size_bytes))


_BOMBS: dict[str, Callable[[], tuple[bytes, str, int]]] = {
    "zstd, more than announced": lambda: (_zstd(1 << 28), "zstd", 1 << 20),
    "zstd, less than announced": lambda: (_zstd(5000), "zstd", 1 << 20),
    "zstd without a size": lambda: (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(9)), "zstd", 9),
    "lz4, more than announced": lambda: (lz4.block.compress(bytes(1 << 26), store_size=False), "lz4", 1 << 20),
    "lz4, less than announced": lambda: (lz4.block.compress(bytes(5000), store_size=False), "lz4", 1 << 20),
    "noise": lambda: (np.random.default_rng(1).bytes(5000), "zstd", 1 << 20),
}


@pytest.mark.parametrize("bomb", _BOMBS)
def test_a_zip_bomb(bundle: Bundle, oracle: Oracle, plain_cloud: Served, bomb: str) -> None:
    oracle.check_serves(plain_cloud)
    rss_mb = plain_cloud.rss_mb
    payload, squeeze, raw_bytes = _BOMBS[bomb]()
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        for rid in range(1, 21):
            opened = _opened(bundle, peer, rid=rid, **_announced("bool", _VAST))
            peer.say(opened)
            peer.say(_chunk(opened, payload[: 1 << 20], squeeze=squeeze, raw_bytes=raw_bytes))
            peer.read_until(b"\xa2FA")
        assert plain_cloud.rss_mb < rss_mb + 20
    oracle.check_serves(plain_cloud)


def test_vast_tensors_that_never_come(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    oracle.check_serves(plain_cloud)
    rss_mb = plain_cloud.rss_mb
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        for rid in range(1, 31):
            opened = _opened(bundle, peer, rid=rid, **_announced("bool", _VAST))
            peer.say(opened)
            peer.say(_chunk(opened, bytes(4096), offset=_VAST // 2))
        peer.read_until(b"busy")
        assert plain_cloud.rss_mb < rss_mb + 30
    oracle.check_serves(plain_cloud)


def test_questions_again_and_too_late(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    """A repetition changes nothing, and what is over stays over."""
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        opened = _opened(bundle, peer)
        said: tuple[Message, ...] = (opened, opened, _chunk(opened), _chunk(opened), opened, _chunk(opened))
        for message in said:
            peer.say(message)
        answers = peer.read_until(b"\xa2CH", Lane.DATA)
        peer.say(Done(peer.instance, 1))
        peer.say(Cancel(peer.instance, 1, 1))
        for message in said:
            peer.say(message)
        older = replace(opened, attempt=0)
        peer.say(older)
        peer.say(_chunk(older))
        last = replace(opened, rid=2)
        peer.say(last)
        peer.say(_chunk(last))
        answers += peer.read_until(b"\xa2CH", Lane.DATA)
        assert answers.count(b"\xa2OP") == 2
    oracle.check_serves(plain_cloud)


def test_chunks_that_contradict_each_other(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    with RawPeer(plain_cloud.port) as peer:
        peer.introduce(bundle.digest)
        opened = _opened(bundle, peer, **_announced("float32", 2, 2400))
        peer.say(opened)
        for chunk in (
            _chunk(opened, bytes(19_201)),
            _chunk(opened, bytes(5000), offset=1 << 40),
            _chunk(opened, bytes(100)),
            replace(_chunk(opened, bytes(5000)), crc32=1),
            replace(_chunk(opened, bytes(5000)), tensor=1),
        ):
            peer.say(chunk)
            peer.read_until(b"\xa2FA")
    oracle.check_serves(plain_cloud)


def test_a_header_beyond_the_limit_cuts_the_connection(bundle: Bundle, oracle: Oracle, plain_cloud: Served) -> None:
    for lane in Lane:
        with RawPeer(plain_cloud.port) as peer:
            peer.introduce(bundle.digest)
            peer.send(lane, wire([bytes(MAX_HEADER_BYTES + 1)]))
            peer.await_end()
    oracle.check_serves(plain_cloud)
