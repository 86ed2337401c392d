"""Chunks and their assembly: any order, duplicates, limits before allocation, contradictions refused."""

import dataclasses
import random
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.errors import InternalError, ProtocolError
from flagsplit.transport.messages import Chunk, Open, TensorHeader
from flagsplit.transport.tensors import (
    ALIGNMENT_BYTES,
    LARGE_TENSOR_BYTES,
    Assembly,
    TransferLimits,
    chunks_of,
    inline_payload,
)
from flagsplit.transport.testing import sample_open

SMALL = TransferLimits(min_chunk_bytes=1)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4), st.integers(1, 25), st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_twice_give_the_tensors(
    tensors: list[bytes], chunk_bytes: int, rng: random.Random
) -> None:
    opened = sample_open(*map(len, tensors))
    assembly = Assembly(opened, SMALL)
    chunks = list(chunks_of(opened, tensors, chunk_bytes)) * 2
    rng.shuffle(chunks)
    done = [assembly.accept(chunk) for chunk in chunks]
    assert assembly.complete
    assert all(done[index:] for index in range(len(done)) if done[index])
    assert [bytes(buffer) for buffer in assembly.buffers()] == tensors


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 2**32 - 1))
def test_tensors_inside_the_open_are_there_at_once(tensors: list[bytes], wrong: int) -> None:
    opened = sample_open(*map(len, tensors))
    payload = inline_payload([memoryview(tensor) for tensor in tensors])
    if not payload:
        return
    whole = dataclasses.replace(opened, inline_crc32=zlib.crc32(payload), payload=payload)
    assembly = Assembly(whole, SMALL)
    assert assembly.complete
    assert [bytes(buffer) for buffer in assembly.buffers()] == tensors
    assert all(buffer.readonly is False for buffer in assembly.buffers())
    assert assembly.offsets() == tuple(map(len, tensors))
    assert not list(chunks_of(whole, tensors))
    with pytest.raises(ProtocolError):
        Assembly(dataclasses.replace(whole, inline_crc32=zlib.crc32(payload) ^ wrong), SMALL)
    with pytest.raises(ProtocolError):
        Assembly(whole, TransferLimits(max_request_bytes=len(payload) - 1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 40)), max_size=12))
def test_arbitrary_chunks_never_corrupt_or_escape(places: list[tuple[int, int]]) -> None:
    data = bytes(range(64))
    opened = sample_open(64)
    assembly = Assembly(opened, SMALL)
    covered: set[int] = set()
    whole = next(chunks_of(opened, [data], 64))
    for offset, size in places:
        payload = data[offset : offset + size] + bytes(max(0, offset + size - 64) if size else 0)
        chunk = dataclasses.replace(whole, offset=offset, payload=payload, crc32=zlib.crc32(payload))
        span = set(range(offset, offset + len(payload)))
        try:
            assembly.accept(chunk)
        except ProtocolError:
            assert not span or max(span) >= 64 or span & covered
        else:
            covered |= span
        assert assembly.missing_bytes == 64 - len(covered)


def test_numpy_arrays_of_any_dtype_travel_without_a_copy() -> None:
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.ones((3,), ml_dtypes.bfloat16),
        np.array(7, np.int64),
        np.zeros((0, 4), np.uint8),
    ]
    tensors = tuple(TensorHeader(f"t{i}", a.dtype.name, a.shape, a.nbytes) for i, a in enumerate(arrays))
    opened = dataclasses.replace(sample_open(), tensors=tensors)
    chunks = list(chunks_of(opened, arrays))
    assert np.shares_memory(np.frombuffer(chunks[0].payload, np.uint8), arrays[0])
    assembly = Assembly(opened, TransferLimits())
    assert [assembly.accept(chunk) for chunk in chunks] == [False, False, True]
    for array, buffer in zip(arrays, assembly.buffers(), strict=True):
        view = np.frombuffer(buffer, array.dtype).reshape(array.shape) if array.size else np.empty_like(array)
        assert view.tobytes() == array.tobytes()
        assert not buffer.readonly
        if array.size:
            assert np.frombuffer(buffer, np.uint8).ctypes.data % ALIGNMENT_BYTES == 0


def test_large_tensors_travel_in_large_chunks() -> None:
    sizes = (LARGE_TENSOR_BYTES - 1, LARGE_TENSOR_BYTES)
    opened = sample_open(*sizes)
    chunks = list(chunks_of(opened, [bytes(size) for size in sizes]))
    assert [max(len(c.payload) for c in chunks if c.tensor == tensor) for tensor in (0, 1)] == [256 << 10, 1 << 20]


def test_an_open_without_bytes_is_complete_at_once() -> None:
    assembly = Assembly(sample_open(0, 0), TransferLimits())
    assert assembly.complete
    assert [len(buffer) for buffer in assembly.buffers()] == [0, 0]


@pytest.mark.parametrize(
    ("opened", "limits"),
    [
        (sample_open(101), TransferLimits(max_tensor_bytes=100)),
        (sample_open(60, 60), TransferLimits(max_request_bytes=100)),
        (sample_open(1, 1, 1), TransferLimits(max_tensors=2)),
    ],
)
def test_limits_are_checked_before_anything_is_allocated(opened: Open, limits: TransferLimits) -> None:
    with pytest.raises(ProtocolError, match="at most"):
        Assembly(opened, limits)


def test_memory_is_only_taken_when_bytes_come() -> None:
    tracemalloc.start()
    try:
        Assembly(sample_open(200 << 20, 200 << 20), TransferLimits())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_contradicting_chunks_are_refused_and_change_nothing() -> None:
    opened = sample_open(20_000, 8)
    data = bytes(range(250)) * 80
    assembly = Assembly(opened, TransferLimits(max_chunk_bytes=8192))
    first, second, third, tail = chunks_of(opened, [data, data[:8]], 8192)
    assembly.accept(first)
    before = assembly.missing_bytes
    bad: list[Chunk] = [
        dataclasses.replace(second, crc32=second.crc32 ^ 1),
        dataclasses.replace(first, crc32=first.crc32 ^ 1),
        dataclasses.replace(second, offset=8000),
        dataclasses.replace(second, offset=15_000),
        dataclasses.replace(second, payload=second.payload[:100]),
        dataclasses.replace(second, payload=data[:9000]),
        dataclasses.replace(second, tensor=2),
        dataclasses.replace(second, rid=2),
        dataclasses.replace(second, attempt=1),
        dataclasses.replace(second, hop=0),
        dataclasses.replace(tail, offset=1),
    ]
    for chunk in bad:
        with pytest.raises(ProtocolError):
            assembly.accept(chunk)
        assert assembly.missing_bytes == before
    assert not assembly.accept(first)
    with pytest.raises(InternalError, match="lack"):
        assembly.buffers()
    assert [assembly.accept(chunk) for chunk in (tail, third, second)] == [False, False, True]
    assert bytes(assembly.buffers()[0]) == data


def test_buffers_must_fit_the_announcement() -> None:
    with pytest.raises(InternalError, match="2 buffers"):
        list(chunks_of(sample_open(4), [b"1234", b""]))
    with pytest.raises(InternalError, match="3"):
        list(chunks_of(sample_open(4), [b"123"]))
    with pytest.raises(InternalError, match="contiguous"):
        list(chunks_of(sample_open(4), [np.zeros((4, 2), np.uint8)[:, 0]]))
