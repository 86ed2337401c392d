"""Sound whose samples are their positions, who hears it rightly but for cut words, and who detects speech in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.speech.recognizer import Heard
from flagsplit.apps.speech.vad import RATE_HZ
from flagsplit.targets.interface import Array, TensorSpec

SCALE = 2.0**-22


@dataclass(frozen=True)
class Said:
    """A word of a script, at sample positions."""

    text: str
    start: int
    end: int


def script(parts: list[list[str]], word_s: float, pause_s: float) -> list[Said]:
    """Words at an even pace, with a pause between the parts."""
    found, at = [], RATE_HZ
    for part in parts:
        for word in part:
            end = at + round(word_s * RATE_HZ)
            found.append(Said(word, at, end))
            at = end
        at += round(pause_s * RATE_HZ)
    return found


def sound(said: list[Said], after_s: float = 1.0) -> NDArray[np.float32]:
    """Positions, positive where somebody speaks, else negative."""
    end = said[-1].end if said else 0
    samples = -(np.arange(end + round(after_s * RATE_HZ)) + 1.0)
    for word in said:
        samples[word.start : word.end] *= -1
    return (samples * SCALE).astype(np.float32)


class Detector:
    """Sees speech where most samples are positive."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        share = (tensors["input"][0, 64:].astype(np.float32) > 0).mean(dtype=np.float32)
        return {"output": np.array([[share]], np.float32), "stateN": tensors["state"]}

    def close(self) -> None:
        pass


class Hearer:
    """Hears the words of a script that are whole, and something else of those that are cut, never the same twice."""

    rate_hz = RATE_HZ
    plan = "all-phone"

    def __init__(self, said: list[Said], max_input_s: float, where: str = "phone") -> None:
        self._said, self.max_input_s, self._where = said, max_input_s, where
        self.asked: list[tuple[int, int]] = []

    def recognize(
        self, samples: NDArray[np.float32], *, is_partial: bool = False, shared_s: float = 0.0
    ) -> Iterator[Heard]:
        assert len(samples) <= self.max_input_s * RATE_HZ
        start = round(float(np.abs(samples[0])) / SCALE) - 1
        end = start + len(samples)
        self.asked.append((start, end))
        for word in self._said:
            shared = min(word.end, end) - max(word.start, start)
            if shared <= 0:
                continue
            text = word.text if start <= word.start and word.end <= end else f"{word.text[:1]}{end}"
            yield Heard(f" {text[:1]}", self._where)
            yield Heard(text[1:], self._where)

    def close(self) -> None:
        pass
