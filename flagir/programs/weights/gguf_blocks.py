"""GGUF's tensor types: blocks of numbers that share a scale, turned into float32.

Each function takes blocks as bytes [blocks, bytes of a block] and gives float32 [blocks, numbers of a block]. The
layouts are those of ggml's `ggml-common.h` (`block_q4_0` and so on), the meanings those of its `dequantize_row_*`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.programs.weights.tensors import Array, bfloat16, plain

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockType:
    """`numbers` numbers in `size_bytes` bytes; `decode` takes the bytes of any number of blocks."""

    name: str
    numbers: int
    size_bytes: int
    decode: Callable[[memoryview], Array]


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at that byte of each block, [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Floats:
    """The lower halves of all bytes of a block, then the upper ones."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _fifth_bits(packed: Bytes) -> Floats:
    """Sixteen for each bit that is set, [blocks, 32]."""
    return np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32) * np.float32(16)


def _q5_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - np.float32(16)) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_k(blocks: Bytes) -> Floats:
    """256 numbers in eight runs of 32, each with a scale and an offset of six bits."""
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32)
    return _scaled_runs(numbers, blocks)


def _q5_k(blocks: Bytes) -> Floats:
    """The same with a fifth bit: bit i of byte j is that of number j of run i."""
    numbers = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    fifth = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").swapaxes(1, 2)
    return _scaled_runs(numbers + fifth.astype(np.float32) * np.float32(16), blocks)


def _scaled_runs(numbers: Floats, blocks: Bytes) -> Floats:
    """Numbers [blocks, 8, 32] with the twelve bytes of scales and offsets that `get_scale_min_k4` takes apart."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    scale = scales.astype(np.float32) * _half(blocks, 0)
    offset = offsets.astype(np.float32) * _half(blocks, 2)
    result: Floats = (numbers * scale[:, :, None] - offset[:, :, None]).reshape(-1, 256)
    return result


def _q6_k(blocks: Bytes) -> Floats:
    """256 numbers in two halves of 128, of four runs of 32: four bits of `low`, two of `high`, a scale for each 16."""
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=2).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    numbers = (low | (high << np.uint8(4))).astype(np.float32).reshape(-1, 16, 16) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    result: Floats = (numbers * scales[:, :, None]).reshape(-1, 256)
    return result


def _blocks(size_bytes: int, decode: Callable[[Bytes], Floats]) -> Callable[[memoryview], Array]:
    def decoded(data: memoryview) -> NDArray[Any]:
        return decode(np.frombuffer(data, np.uint8).reshape(-1, size_bytes)).reshape(-1)

    return decoded


TYPES: Final = {
    0: BlockType("F32", 1, 4, plain("<f4")),
    1: BlockType("F16", 1, 2, plain("<f2")),
    2: BlockType("Q4_0", 32, 18, _blocks(18, _q4_0)),
    3: BlockType("Q4_1", 32, 20, _blocks(20, _q4_1)),
    6: BlockType("Q5_0", 32, 22, _blocks(22, _q5_0)),
    7: BlockType("Q5_1", 32, 24, _blocks(24, _q5_1)),
    8: BlockType("Q8_0", 32, 34, _blocks(34, _q8_0)),
    12: BlockType("Q4_K", 256, 144, _blocks(144, _q4_k)),
    13: BlockType("Q5_K", 256, 176, _blocks(176, _q5_k)),
    14: BlockType("Q6_K", 256, 210, _blocks(210, _q6_k)),
    24: BlockType("I8", 1, 1, plain("<i1")),
    25: BlockType("I16", 1, 2, plain("<i2")),
    26: BlockType("I32", 1, 4, plain("<i4")),
    27: BlockType("I64", 1, 8, plain("<i8")),
    28: BlockType("F64", 1, 8, plain("<f8")),
    30: BlockType("BF16", 1, 2, bfloat16),
}
"""By the number that a file has for them."""
