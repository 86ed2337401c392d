"""WAV files as the world writes them, and what is refused with a line that says why."""

import os
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.speech.wav_files import GUID_TAIL, chunk, fmt, pcm16, riff, sparse_silence

from flagsplit.apps.speech.wav import WavReader
from flagsplit.errors import InputError

Sound = NDArray[np.float32]
SOUND: Sound = (np.random.default_rng(0).integers(-128, 128, 600) / 128).astype(np.float32)


def read(path: Path, data: bytes, rate_hz: int = 0) -> tuple[Sound, WavReader]:
    path = path / "x.wav"
    path.write_bytes(data)
    with WavReader(path) as reader:
        return np.concatenate(list(reader.blocks(rate_hz))), reader


def pcm(bits: int, order: str = "<") -> bytes:
    wide = np.round(SOUND.astype(np.float64) * 2.0**31).clip(-(2**31), 2**31 - 1).astype(">i4")
    if bits == 8:
        return (np.round(SOUND * 128) + 128).astype(np.uint8).tobytes()
    big = wide.view(np.uint8).reshape(-1, 4)[:, : bits // 8]
    return (big if order == ">" else big[:, ::-1]).tobytes()


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_pcm(tmp_path: Path, bits: int, extensible: bool) -> None:
    found, reader = read(tmp_path, riff([fmt(bits=bits, extensible=extensible), chunk(b"data", pcm(bits))]))
    np.testing.assert_allclose(found, SOUND, atol=2.0 ** -(bits - 1) if bits == 32 else 0)
    assert reader.notes == ()
    assert reader.seconds == len(SOUND) / 16_000


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_big_endian(tmp_path: Path, bits: int) -> None:
    chunks = [fmt(bits=bits, order=">"), chunk(b"data", pcm(bits, ">"), order=">")]
    found, _ = read(tmp_path, riff(chunks, name=b"RIFX", order=">"))
    np.testing.assert_allclose(found, SOUND, atol=1e-9)


@pytest.mark.parametrize(("bits", "held"), [(12, 2), (20, 3), (24, 4)])
def test_bits_in_more_bytes_than_they_need(tmp_path: Path, bits: int, held: int) -> None:
    data = chunk(b"data", pcm(8 * held))
    np.testing.assert_allclose(read(tmp_path, riff([fmt(bits=bits, frame_bytes=held), data]))[0], SOUND, atol=1e-9)


@pytest.mark.parametrize("bits", [32, 64])
def test_float(tmp_path: Path, bits: int) -> None:
    data = SOUND.astype(f"<f{bits // 8}")
    data[:4] = [np.nan, np.inf, 1.5, -2.0]
    found, reader = read(tmp_path, riff([fmt(3, bits=bits), chunk(b"data", data.tobytes())]))
    np.testing.assert_array_equal(found[:4], [0, 0, 1, -1])
    np.testing.assert_array_equal(found[4:], SOUND[4:])
    assert reader.notes == ("2 samples are not numbers; taken as silence", "2 samples are beyond -1..1; clipped")


def test_telephone_codes(tmp_path: Path) -> None:
    """Values of ITU-T G.711 as every table of it has them."""
    known = {
        6: {0x55: -8, 0xD5: 8, 0x2A: -32256, 0xAA: 32256, 0xD4: 24, 0x80: 5504, 0x00: -5504},
        7: {0x00: -32124, 0x80: 32124, 0xFF: 0, 0x7F: 0, 0xFE: 8, 0xF0: 120, 0x8F: 16764},
    }
    for tag, values in known.items():
        found, _ = read(tmp_path, riff([fmt(tag, bits=8), chunk(b"data", bytes(values))]))
        np.testing.assert_array_equal(found * 32768, list(values.values()))


def test_the_standard_library_writes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.stack([SOUND, -SOUND * 0.5], axis=1) * 32767).astype("<i2").tobytes())
    with WavReader(path) as reader:
        found = np.concatenate(list(reader.blocks()))
    np.testing.assert_allclose(found, SOUND * 0.25, atol=1e-4)


def test_channels_are_averaged(tmp_path: Path) -> None:
    six = np.repeat(SOUND[:, None], 6, axis=1)
    six[:, 3:] = 0
    found, _ = read(tmp_path, pcm16(six.reshape(-1), channels=6))
    np.testing.assert_allclose(found, SOUND / 2, atol=1e-4)


def test_resampled(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32) / 2
    found, _ = read(tmp_path, pcm16(np.repeat(tone, 2), 44_100, 2), 16_000)
    assert len(found) == 16_000
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 2
    np.testing.assert_allclose(found[500:-500], wanted[500:-500], atol=1e-3)


def test_other_chunks_and_padding(tmp_path: Path) -> None:
    data = chunk(b"data", pcm(16))
    odd = chunk(b"LIST", b"abc")
    for between in ([odd], [chunk(b"junk", b"x" * 999)], [chunk(b"LIST", b"abc", padded=False)], [odd, odd]):
        found, reader = read(tmp_path, riff([*between, fmt(), *between, data, odd]))
        np.testing.assert_array_equal(found, SOUND.clip(-1, 32767 / 32768))
        assert reader.notes == ()


def test_rf64(tmp_path: Path) -> None:
    data = pcm(16)
    sizes = struct.pack("<QQQI", 0, len(data), len(SOUND), 0)
    chunks = [chunk(b"ds64", sizes), fmt(), chunk(b"data", data, size=0xFFFFFFFF), chunk(b"LIST", b"after the sound")]
    for name in (b"RF64", b"BW64"):
        found, reader = read(tmp_path, riff(chunks, name=name, size=0xFFFFFFFF))
        assert len(found) == len(SOUND)
        assert reader.notes == ()


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_length_left_open(tmp_path: Path, size: int) -> None:
    """As programs write it that write to a pipe."""
    found, reader = read(tmp_path, riff([fmt(), chunk(b"data", pcm(16), size=size)], size=size))
    assert len(found) == len(SOUND)
    assert reader.notes == ("its header leaves the length open; read to the end of the file",)


def test_more_promised_than_there(tmp_path: Path) -> None:
    data = pcm(16)
    found, reader = read(tmp_path, riff([fmt(), chunk(b"data", data[:-3], size=10**9, padded=False)]))
    assert len(found) == len(SOUND) - 2
    assert reader.notes == (
        f"its header says 1000000000 bytes of samples, the file has {len(data) - 3}; read what is there",
        "its last 1 bytes are no whole sample; left them out",
    )


def test_a_wrong_byte_rate_is_said(tmp_path: Path) -> None:
    head = bytearray(fmt())
    head[16:20] = struct.pack("<I", 99)
    found, reader = read(tmp_path, riff([bytes(head), chunk(b"data", pcm(16))]))
    assert len(found) == len(SOUND)
    assert reader.notes == ("its header says 99 bytes a second, 32000 would be right",)


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"It was the best of times", "is text"),
    "png": (b"\x89PNG\r\n\x1a\n0000IHDR", "a PNG image"),
    "flac": (b"fLaC\0\0\0\x22" * 4, "a FLAC recording"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "another kind ('AVI')"),
    "noise": (bytes(range(200, 256)), "is none"),
    "magic only": (b"RIFF\0\0\0\0WAVE", "no data chunk"),
    "no data": (riff([fmt(), chunk(b"LIST", b"abcd")]), "no data chunk"),
    "a chunk beyond the end": (riff([fmt(), chunk(b"LIST", b"", size=0xFFFFFFF0)]), "no data chunk"),
    "no fmt": (riff([chunk(b"data", b"abcd")]), "before it says what they are"),
    "short fmt": (riff([chunk(b"fmt ", b"\1\0\1\0"), chunk(b"data", b"abcd")]), "16 are needed"),
    "no samples": (riff([fmt(), chunk(b"data", b"")]), "has 0 samples"),
    "no samples, then text": (riff([fmt(), chunk(b"data", b""), chunk(b"LIST", b"text")]), "has 0 samples"),
    "half a sample": (riff([fmt(), chunk(b"data", b"a", size=1)]), "has 0 samples"),
    "no channels": (riff([fmt(channels=0), chunk(b"data", b"abcd")]), "0 channels"),
    "channels": (riff([fmt(channels=30_000), chunk(b"data", b"abcd")]), "30000 channels"),
    "rate 0": (riff([fmt(rate_hz=0), chunk(b"data", b"abcd")]), "0 samples a second"),
    "rate": (riff([fmt(rate_hz=2**31), chunk(b"data", b"abcd")]), "2147483648 samples a second"),
    "bits 0": (riff([fmt(bits=0), chunk(b"data", b"abcd")]), "of 0 bits"),
    "bits 64": (riff([fmt(bits=64), chunk(b"data", b"abcd" * 2)]), "of 64 bits"),
    "float 16": (riff([fmt(3, bits=16), chunk(b"data", b"abcd")]), "float samples of 16 bits"),
    "adpcm": (riff([fmt(2, bits=4), chunk(b"data", b"abcd")]), "WAV format 2"),
    "mp3 inside": (riff([fmt(85, bits=0), chunk(b"data", b"abcd")]), "WAV format 85"),
    "frames": (riff([fmt(channels=2, frame_bytes=7), chunk(b"data", b"abcd" * 7)]), "contradicts itself"),
    "short extensible": (
        riff([chunk(b"fmt ", struct.pack("<HHIIHH", 0xFFFE, 1, 16_000, 32_000, 2, 16)), chunk(b"data", b"abcd")]),
        "does not say how",
    ),
    "vendor": (riff([fmt(extensible=True).replace(GUID_TAIL, b"v" * 14), chunk(b"data", b"abcd")]), "vendor's own"),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, data)
    assert why in str(caught.value)
    assert "x.wav" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "pipe", "no regular file"),
        (tmp_path, "a folder"),
        (tmp_path / "none", "No such file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("a\0b"), "cannot read"),
    ):
        with pytest.raises(InputError, match=why):
            WavReader(path)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = sparse_silence(tmp_path / "x.wav", 60)
    with WavReader(path) as reader:
        blocks = reader.blocks()
        next(blocks)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InputError, match="became shorter"):
            next(blocks)


def test_every_prefix_is_read_or_refused(tmp_path: Path) -> None:
    """A recording that breaks off anywhere, and one with a byte flipped anywhere in its header."""
    whole = riff([chunk(b"LIST", b"abc"), fmt(extensible=True), chunk(b"data", pcm(16)[:64])])
    spoiled = [whole[:end] for end in range(len(whole))]
    spoiled += [whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :] for at in range(80) for flip in (1, 128, 255)]
    read_back = 0
    for data in spoiled:
        try:
            found, _ = read(tmp_path, data)
        except InputError:
            continue
        read_back += 1
        assert 1 <= len(found) <= 64
    assert read_back > 60


@pytest.mark.slow
def test_two_hours_in_little_memory(tmp_path: Path) -> None:
    path = sparse_silence(tmp_path / "x.wav", 7_200, 44_100)
    tracemalloc.start()
    try:
        with WavReader(path) as reader:
            assert reader.seconds == 7_200
            count = sum(len(block) for block, _ in zip(reader.blocks(16_000), range(40), strict=False))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 40 * 100_000
    assert peak_bytes < 64e6
