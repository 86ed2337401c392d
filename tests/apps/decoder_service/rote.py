"""A backend that recites: what it says depends on the number of the token only, so every test knows it beforehand."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from flagsplit.apps.decoder_service.gateway_backend import BusyError, ModelFacts, Piece, Sound, Wanted
from flagsplit.apps.decoder_service.gateway_sound import PcmSound
from flagsplit.apps.speech.transcriber import NewWord, Segment
from flagsplit.apps.speech.words import Word
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import InputError

VERSE = "Ever tried, ever failed \N{EN DASH} no matter. 😀 "
BYTES = VERSE.encode()


class ByteTokenizer(Tokenizer):
    """A token is a byte of UTF-8."""

    special: ClassVar[dict[str, int]] = {}  # type: ignore[misc]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token])


@dataclass
class Rote:
    """Says the verse again and again, from the place that the number of tokens before it gives; the seed shifts it.

    Attributes:
        gap_s: between tokens.
        places: streams at once; beyond them it is busy.
        open: streams now.
        cancelled: how many ended before their end.
        asked: what streams were wanted.
    """

    facts: ModelFacts = field(default_factory=lambda: ModelFacts("rote", "text", 256, 512))
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    gap_s: float = 0.0
    places: int = 64
    reason: str = ""
    open: int = 0
    cancelled: int = 0
    asked: list[Wanted] = field(default_factory=list)

    def not_ready(self) -> str:
        return self.reason

    async def generate(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        if self.open >= self.places:
            raise BusyError(f"{self.places} streams are open", 2.5)
        self.asked.append(wanted)
        self.open += 1
        try:
            done = len(wanted.generated)
            shift = wanted.options.seed if wanted.options.temperature else 0
            while done < wanted.options.max_tokens:
                await asyncio.sleep(self.gap_s)
                token = BYTES[(done + shift) % len(BYTES)]
                done += 1
                yield Piece((token,), "length" if done == wanted.options.max_tokens else "", "here")
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += done < wanted.options.max_tokens
            raise
        finally:
            self.open -= 1


@dataclass
class RoteListener(Rote):
    """Hears one word of the verse in every second of audio."""

    facts: ModelFacts = field(
        default_factory=lambda: ModelFacts(
            "ear", "speech", 256, 512, languages=("en",), cuts={"split": {"hidden": ("float32", (1, None, 4))}}
        )
    )

    def open_sound(self, data: bytes) -> PcmSound:
        if not data.startswith(b"RIFF"):
            raise InputError("expected a recording, came something else")
        return PcmSound(16000, np.frombuffer(data[4:], np.int16).astype(np.float32))

    async def listen(
        self, sound: Sound, wanted: Wanted, *, live: bool = False
    ) -> AsyncGenerator[NewWord | Segment, None]:
        self.asked.append(wanted)
        self.open += 1
        try:
            blocks, samples, second = sound.blocks(), 0, 0
            while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                samples += len(block)
                while samples >= (second + 1) * 16000:
                    await asyncio.sleep(self.gap_s)
                    word = VERSE.split()[second % 4]
                    yield NewWord(word, "here now" if live else "here", second)
                    yield Segment(second, (Word(word, second, second + 1, "here"),), len(word))
                    second += 1
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            sound.interrupt()
            self.open -= 1


def recording(seconds: int) -> bytes:
    """What `RoteListener` reads."""
    return b"RIFF" + b"\0\0" * 16000 * seconds
