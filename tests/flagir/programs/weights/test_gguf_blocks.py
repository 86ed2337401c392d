"""Blocks against the loops of ggml's `dequantize_row_*`, written out number by number."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.flagir.programs.weights import files

from flagsplit.flagir.programs.weights.gguf import read_gguf

Loop = Callable[[bytes], list[float]]


def _q4_0(block: bytes) -> list[float]:
    (d,) = struct.unpack("<e", block[:2])
    return [((q & 15) - 8) * d for q in block[2:]] + [((q >> 4) - 8) * d for q in block[2:]]


def _q4_1(block: bytes) -> list[float]:
    d, m = struct.unpack("<ee", block[:4])
    return [(q & 15) * d + m for q in block[4:]] + [(q >> 4) * d + m for q in block[4:]]


def _q5_0(block: bytes) -> list[float]:
    d, high = struct.unpack("<eI", block[:6])
    lower = [((q & 15) | (high >> j & 1) << 4) for j, q in enumerate(block[6:])]
    upper = [((q >> 4) | (high >> (j + 16) & 1) << 4) for j, q in enumerate(block[6:])]
    return [(q - 16) * d for q in lower + upper]


def _q5_1(block: bytes) -> list[float]:
    d, m, high = struct.unpack("<eeI", block[:8])
    lower = [((q & 15) | (high >> j & 1) << 4) for j, q in enumerate(block[8:])]
    upper = [((q >> 4) | (high >> (j + 16) & 1) << 4) for j, q in enumerate(block[8:])]
    return [q * d + m for q in lower + upper]


def _scale_and_offset(j: int, packed: bytes) -> tuple[int, int]:
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)


def _k_runs(block: bytes, high: bytes, low: bytes) -> list[float]:
    d, smallest = struct.unpack("<ee", block[:4])
    y: list[float] = []
    for run in range(8):
        scale, offset = _scale_and_offset(run, block[4:16])
        for j in range(32):
            q = low[32 * (run // 2) + j]
            number = (q >> 4 if run % 2 else q & 15) + (16 if high[j] >> run & 1 else 0)
            y.append(d * scale * number - smallest * offset)
    return y


def _q4_k(block: bytes) -> list[float]:
    return _k_runs(block, bytes(32), block[16:])


def _q5_k(block: bytes) -> list[float]:
    return _k_runs(block, block[16:48], block[48:])


def _q8_0(block: bytes) -> list[float]:
    (d,) = struct.unpack("<e", block[:2])
    return [q * d for q in struct.unpack("<32b", block[2:])]


def _q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack("<16b", block[192:208])
    (d,) = struct.unpack("<e", block[208:])
    y = [0.0] * 256
    for n in range(2):
        for at in range(32):
            h = high[32 * n + at]
            ql = low[64 * n :]
            quarters = (
                (ql[at] & 15) | (h & 3) << 4,
                (ql[at + 32] & 15) | (h >> 2 & 3) << 4,
                (ql[at] >> 4) | (h >> 4 & 3) << 4,
                (ql[at + 32] >> 4) | (h >> 6 & 3) << 4,
            )
            for run, q in enumerate(quarters):
                y[128 * n + 32 * run + at] = d * scales[8 * n + 2 * run + at // 16] * (q - 32)
    return y


LOOPS: dict[int, tuple[int, int, Loop]] = {
    2: (18, 32, _q4_0),
    3: (20, 32, _q4_1),
    6: (22, 32, _q5_0),
    7: (24, 32, _q5_1),
    8: (34, 32, _q8_0),
    12: (144, 256, _q4_k),
    13: (176, 256, _q5_k),
    14: (210, 256, _q6_k),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_blocks(kind: int, tmp_path: Path) -> None:
    size_bytes, numbers, loop = LOOPS[kind]
    random = np.random.default_rng(kind)
    blocks = [bytearray(random.bytes(size_bytes)) for _ in range(6)]
    for block in blocks:
        # Scales of a size that occurs: any sixteen bits may be no number.
        places = {14: (208,)}.get(kind, (0, 2) if kind in (3, 7, 12, 13) else (0,))
        for at in places:
            struct.pack_into("<e", block, at, random.normal())
    (tmp_path / "x").write_bytes(files.gguf({}, blocks={"w": (kind, (3, 2 * numbers), b"".join(blocks))}))
    wanted = np.array([loop(bytes(block)) for block in blocks], np.float32).reshape(3, 2 * numbers)
    came = read_gguf(tmp_path / "x").weights.read("w", 3, 2 * numbers)
    np.testing.assert_allclose(came, wanted, rtol=2e-6, atol=1e-5)
