"""What a speech model reads of a sound: its samples, or their log-mel spectrogram, of the lengths that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import ConfigError
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.flagir.programs.log_mel import HOP, log_mel
from flagsplit.targets.interface import Array


@dataclass(frozen=True)
class SoundInput:
    """An input of a model that takes sound.

    Attributes:
        name: of the input.
        sizes: the only lengths along its last axis, rising; empty for all.
        least, most: the smallest and the greatest length; 0 for no limit.
        bands: of a log-mel spectrogram; 0 where the samples themselves are read.
    """

    name: str
    sizes: tuple[int, ...] = ()
    least: int = 0
    most: int = 0
    bands: int = 0

    @property
    def samples_each(self) -> int:
        """How many samples a step along the last axis is."""
        return HOP if self.bands else 1

    @property
    def max_samples(self) -> int:
        """The longest sound; 0 for no limit."""
        return (self.sizes[-1] if self.sizes else self.most) * self.samples_each

    def tensors(self, samples: NDArray[np.float32]) -> dict[str, Array]:
        """The input for a sound, silence after it where only certain lengths are taken."""
        wanted = max(-(-len(samples) // self.samples_each), self.least)
        length = next((size for size in self.sizes if size >= wanted), wanted)
        if self.bands:
            return {self.name: log_mel(samples, self.bands, length)[None]}
        return {self.name: np.pad(samples, (0, length - len(samples)))[None]}


def sound_input(
    facts: ProgramFacts,
    name: str,
    shape: Sequence[int | str],
    sizes: Sequence[int] = (),
    limits: tuple[int, int] = (0, 0),
) -> SoundInput:
    """The input of a model.

    Args:
        facts: of its program.
        name: of the input.
        shape: [batch, samples], or [batch, bands, steps].
        sizes: the only sizes of the last axis, if it is open.
        limits: its smallest and its greatest size; 0 for none.

    Raises:
        ConfigError: the program is not for speech.
    """
    if facts.input == "text":
        raise ConfigError(f"expected a program that reads sound, {facts.name} reads text")
    last = shape[-1]
    fixed = (last,) if isinstance(last, int) else tuple(sorted(sizes))
    return SoundInput(name, fixed, *limits, int(shape[1]) if facts.input == "log-mel" else 0)
