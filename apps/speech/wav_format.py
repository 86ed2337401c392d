"""What a WAV file says about itself: RIFF, RIFX and RF64 chunks up to the samples, each length checked before its use.

Headers lie: programs that write to a pipe put 0 or 4294967295 for lengths that they do not know, recordings break off,
and chunks of odd length lack their padding. Where it is plain what was meant it is taken so, as ffmpeg does, and told
in `notes`; a header that contradicts itself is refused. `wav.py` reads the samples.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Final

from flagsplit.errors import InputError

RATES_HZ: Final = (2_000, 768_000)
CHANNELS_MAX: Final = 256
_CHUNKS_MAX: Final = 1000
_UNKNOWN_BYTES: Final = (0, 0xFFFFFFFF)
_EXTENSIBLE: Final = 0xFFFE
_GUID_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
# By format tag: how samples are kept, and in how many bits they may be.
_ENCODINGS: Final = {1: ("pcm", range(8, 33)), 3: ("float", (32, 64)), 6: ("a-law", (8,)), 7: ("mu-law", (8,))}
# What a file is that is no WAV file, by how it begins.
_OTHERS: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"fLaC", "a FLAC recording"),
    (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"),
    (b"\xff\xfb", "an MP3 recording"),
    (b"FORM", "an AIFF recording"),
    (b"caff", "a Core Audio recording"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
)
_CONVERT: Final = "convert it: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"


@dataclass(frozen=True)
class WavFormat:
    """How the samples of a file are kept.

    Attributes:
        encoding: "pcm", "float", "a-law" or "mu-law".
        order: "<" or ">", the order of the bytes of a sample.
        rate_hz: frames per second.
        channels: samples per frame.
        sample_bytes: bytes of one sample; PCM of fewer bits is kept in its upper ones.
        data_at: offset of the first frame in the file.
        frames: how many whole frames there are, by the file's size, whatever its header says.
        notes: what was taken otherwise than the header says, a line each.
    """

    encoding: str
    order: str
    rate_hz: int
    channels: int
    sample_bytes: int
    data_at: int
    frames: int
    notes: tuple[str, ...]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a sample of every channel."""
        return self.sample_bytes * self.channels


def read_format(file: IO[bytes], size_bytes: int, name: str) -> WavFormat:
    """Read the header of a file of `size_bytes` bytes; `name` is for messages.

    Raises:
        InputError: it is no WAV file, of an encoding that is not read, without samples, or its header contradicts
            itself.
    """
    start = file.read(12)
    if start[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or start[8:12] != b"WAVE":
        raise InputError(f"expected a WAV file, {name} is {_what(start, size_bytes)}; {_CONVERT}")
    return _Header(file, size_bytes, name, ">" if start[:4] == b"RIFX" else "<").read()


def _what(start: bytes, size_bytes: int) -> str:
    if not size_bytes:
        return "empty"
    if start[:4] == b"RIFF":
        return f"a RIFF file of another kind ({start[8:12].decode('ascii', 'replace').strip()!r})"
    for magic, what in _OTHERS:
        if start.startswith(magic):
            return what
    return "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) else "none"


class _Header:
    """Walks the chunks of one file."""

    def __init__(self, file: IO[bytes], size_bytes: int, name: str, order: str) -> None:
        self._file, self._size, self._name, self._order = file, size_bytes, name, order
        self._notes: list[str] = []
        self._data_bytes_of_ds64: int | None = None

    def read(self) -> WavFormat:
        fmt: bytes | None = None
        at = 12
        for _ in range(_CHUNKS_MAX):
            head = self._read(at, 8)
            if len(head) < 8:
                break
            kind, size = struct.unpack(f"{self._order}4sI", head)
            at += 8
            if kind == b"data":
                if fmt is None:
                    raise InputError(f"{self._name} has its samples before it says what they are; it is damaged")
                return self._format(fmt, at, self._data_bytes(at, size))
            if kind == b"fmt " and fmt is None:
                fmt = self._read(at, min(size, 40))
            elif kind == b"ds64" and size >= 16:
                self._data_bytes_of_ds64 = struct.unpack(f"{self._order}8xQ", self._read(at, 16))[0]
            at = self._next(at, size)
        raise InputError(f"{self._name} is a WAV file without samples: it has no data chunk; record it again")

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)

    def _next(self, at: int, size: int) -> int:
        """Where the chunk ends that begins at `at`: after a byte of padding if its length is odd and it has one."""
        end = at + size
        if size % 2 and not _is_name(self._read(end + 1, 4)) and _is_name(self._read(end, 4)):
            return end
        return end + size % 2

    def _data_bytes(self, at: int, said: int) -> int:
        """How many bytes of samples there are."""
        there = max(self._size - at, 0)
        if self._data_bytes_of_ds64 is not None and said == 0xFFFFFFFF:
            said = self._data_bytes_of_ds64
        elif said in _UNKNOWN_BYTES:
            # A file that has chunks in their order after its data has none; otherwise its writer did not know.
            if there and not (said == 0 and _is_name(self._read(at, 4))):
                self._notes.append("its header leaves the length open; read to the end of the file")
                return there
            return 0
        if said > there:
            self._notes.append(f"its header says {said} bytes of samples, the file has {there}; read what is there")
        return min(said, there)

    def _format(self, fmt: bytes, at: int, data_bytes: int) -> WavFormat:
        if len(fmt) < 16:
            raise InputError(
                f"{self._name} says in {len(fmt)} bytes what its samples are, 16 are needed; it is damaged"
            )
        tag, channels, rate_hz, bytes_per_s, frame_bytes, bits = struct.unpack(f"{self._order}HHIIHH", fmt[:16])
        if tag == _EXTENSIBLE:
            tag = self._extensible_tag(fmt)
        if tag not in _ENCODINGS:
            raise InputError(f"{self._name} is of WAV format {tag}, read are PCM, float, A-law and µ-law; {_CONVERT}")
        encoding, allowed = _ENCODINGS[tag]
        if not 1 <= channels <= CHANNELS_MAX:
            raise InputError(f"{self._name} has {channels} channels, expected 1 to {CHANNELS_MAX}; it is damaged")
        low, high = RATES_HZ
        if not low <= rate_hz <= high:
            raise InputError(f"{self._name} has {rate_hz} samples a second, expected {low} to {high}; it is damaged")
        if bits not in allowed:
            raise InputError(f"{self._name} has {encoding} samples of {bits} bits, which is not read; {_CONVERT}")
        sample_bytes = self._sample_bytes(channels, bits, frame_bytes, encoding)
        if bytes_per_s != rate_hz * frame_bytes:
            self._notes.append(f"its header says {bytes_per_s} bytes a second, {rate_hz * frame_bytes} would be right")
        frames, rest = divmod(data_bytes, sample_bytes * channels)
        if not frames:
            raise InputError(f"{self._name} has 0 samples; record it again")
        if rest:
            self._notes.append(f"its last {rest} bytes are no whole sample; left them out")
        return WavFormat(encoding, self._order, rate_hz, channels, sample_bytes, at, frames, tuple(self._notes))

    def _extensible_tag(self, fmt: bytes) -> int:
        if len(fmt) < 40:
            raise InputError(f"{self._name} says that its format is extended and does not say how; it is damaged")
        tag = struct.unpack(f"{self._order}H", fmt[24:26])[0]
        if self._order == "<" and fmt[26:40] != _GUID_TAIL:
            raise InputError(f"{self._name} is of a WAV format of its vendor's own; {_CONVERT}")
        return int(tag)

    def _sample_bytes(self, channels: int, bits: int, frame_bytes: int, encoding: str) -> int:
        """Bytes of a sample: PCM may be kept in more of them than its bits need."""
        needed = (bits + 7) // 8
        sample_bytes, rest = divmod(frame_bytes, channels)
        if rest or not (sample_bytes == needed or (encoding == "pcm" and needed < sample_bytes <= 4 and bits > 8)):
            raise InputError(
                f"{self._name} contradicts itself: {channels} channels of {bits} bits are {channels * needed} bytes "
                f"a frame, its header says {frame_bytes}; it is damaged"
            )
        return sample_bytes


def _is_name(text: bytes) -> bool:
    """Whether a chunk may be called that."""
    return len(text) == 4 and all(32 <= byte < 127 for byte in text)
