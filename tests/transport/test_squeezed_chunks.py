"""Squeezed chunks through `chunks_of` and `Assembly`: mixed with plain ones, in any order, and lies refused."""

import dataclasses
import random
import tracemalloc
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import ProtocolError
from flagsplit.transport.messages import LZ4, MAX_PAYLOAD_BYTES, ZSTD, Chunk, Open, decode, encode
from flagsplit.transport.squeeze import SqueezeSpeed, squeeze
from flagsplit.transport.squeeze_policy import SqueezeDecision, SqueezePolicy
from flagsplit.transport.tensors import Assembly, TransferLimits, chunks_of
from flagsplit.transport.testing import sample_open

SMALL = TransferLimits(min_chunk_bytes=1)


@dataclass
class Fixed:
    """Squeezes each tensor by the kind given for its name."""

    kinds: dict[str, str]
    seen: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def kind_for(self, tensor: str, data: memoryview) -> str:
        return self.kinds[tensor]

    def sent(self, tensor: str, kind: str, raw_bytes: int, sent_bytes: int) -> None:
        self.seen[tensor] = (kind, raw_bytes, sent_bytes)


def squeezed(opened: Open, tensors: list[bytes], kinds: list[str], chunk_bytes: int) -> tuple[list[Chunk], Fixed]:
    squeezer = Fixed({header.name: kind for header, kind in zip(opened.tensors, kinds, strict=True)})
    return list(chunks_of(opened, tensors, chunk_bytes, squeezer=squeezer)), squeezer


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 40), st.sampled_from(["", ZSTD, LZ4])), max_size=4),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_any_mixture_gives_the_tensors(
    parts: list[tuple[bytes, int, str]], chunk_bytes: int, rng: random.Random
) -> None:
    tensors = [data * times for data, times, _ in parts]
    opened = sample_open(*map(len, tensors))
    chunks, squeezer = squeezed(opened, tensors, [kind for _, _, kind in parts], chunk_bytes)
    for header, tensor, (_, _, kind) in zip(opened.tensors, tensors, parts, strict=True):
        own = [chunk for chunk in chunks if opened.tensors[chunk.tensor] == header]
        sent_bytes = sum(len(chunk.payload) for chunk in own)
        assert sent_bytes <= len(tensor)
        assert squeezer.seen.get(header.name) == ((kind, len(tensor), sent_bytes) if kind and tensor else None)
    twice = [decode(encode(chunk)) for chunk in chunks] * 2
    rng.shuffle(twice)
    assembly = Assembly(opened, SMALL)
    for chunk in twice:
        assert isinstance(chunk, Chunk)
        assembly.accept(chunk)
    assert assembly.complete
    assert [bytes(buffer) for buffer in assembly.buffers()] == tensors


def test_a_chunk_that_does_not_shrink_is_sent_plain() -> None:
    noise = np.random.default_rng(3).bytes(4096)
    opened = sample_open(8192)
    (first, second), _ = squeezed(opened, [noise + bytes(4096)], [ZSTD], 4096)
    assert (first.squeeze, first.raw_bytes, bytes(first.payload)) == ("", 0, noise)
    assert (second.squeeze, second.raw_bytes, second.offset) == (ZSTD, 4096, 4096)
    assert second.crc32 == zlib.crc32(second.payload)


def test_with_the_policy_tensors_are_squeezed_from_the_second_request_on() -> None:
    rng = np.random.default_rng(8)
    sparse = np.where(rng.random(100_000) < 0.9, 0, rng.integers(0, 256, 100_000)).astype(np.uint8).tobytes()
    tensors = [sparse, rng.bytes(100_000)]
    opened = sample_open(100_000, 100_000)
    log: list[SqueezeDecision] = []
    speeds = {ZSTD: SqueezeSpeed(3e8, 8e8), LZ4: SqueezeSpeed(5e8, 2e9)}
    policy = SqueezePolicy(lambda: speeds, log=log.append)
    sent = []
    for _ in range(4):
        squeezer = policy.on_link("edge", 2e6, (ZSTD, "resume"))
        chunks = list(chunks_of(opened, tensors, 30_000, squeezer=squeezer))
        assembly = Assembly(opened, TransferLimits())
        assert [assembly.accept(chunk) for chunk in chunks][-1]
        assert [bytes(buffer) for buffer in assembly.buffers()] == tensors
        sent.append([{chunk.squeeze for chunk in chunks if chunk.tensor == tensor} for tensor in (0, 1)])
    assert sent == [[{""}, {""}], *[[{ZSTD}, {""}]] * 3]
    assert [(each.tensor, each.kind) for each in log] == [
        (opened.tensors[0].name, ""),
        (opened.tensors[1].name, ""),
        (opened.tensors[0].name, ZSTD),
    ]


def test_squeezed_chunks_that_contradict_are_refused_and_change_nothing() -> None:
    data = bytes(range(250)) * 80
    opened = sample_open(20_000)
    assembly = Assembly(opened, TransferLimits(max_chunk_bytes=8192))
    (first, second, third), _ = squeezed(opened, [data], [LZ4], 8192)
    assembly.accept(first)
    before = assembly.missing_bytes
    plain = next(chunks_of(opened, [data], 8192))
    other = squeeze(data[8192:16384], ZSTD)
    bad = [
        dataclasses.replace(second, crc32=second.crc32 ^ 1),
        dataclasses.replace(second, raw_bytes=8191),
        dataclasses.replace(second, raw_bytes=20_000),
        dataclasses.replace(second, squeeze=ZSTD),
        dataclasses.replace(second, payload=other, crc32=zlib.crc32(other)),
        dataclasses.replace(second, offset=15_000),
        dataclasses.replace(second, offset=8000),
        dataclasses.replace(second, squeeze="", raw_bytes=0),
        dataclasses.replace(third, raw_bytes=100),
        plain,
    ]
    for chunk in bad:
        with pytest.raises(ProtocolError):
            assembly.accept(chunk)
        assert assembly.missing_bytes == before
    for chunk in (first, second, third):
        assembly.accept(chunk)
    assert bytes(assembly.buffers()[0]) == data


def test_a_chunk_is_not_unsqueezed_before_it_has_a_place() -> None:
    opened = sample_open(5000)
    payload = squeeze(bytes(MAX_PAYLOAD_BYTES), ZSTD)
    whole = next(chunks_of(opened, [bytes(5000)]))
    bomb = dataclasses.replace(
        whole, squeeze=ZSTD, raw_bytes=MAX_PAYLOAD_BYTES, payload=payload, crc32=zlib.crc32(payload)
    )
    assembly = Assembly(opened, TransferLimits())
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="within the 5000"):
            assembly.accept(bomb)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
