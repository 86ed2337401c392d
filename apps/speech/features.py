"""What the encoder of a speech program reads: the sound as it is, or its log-mel spectrogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import ConfigError
from flagsplit.flagir.programs import ProgramFacts
from flagsplit.flagir.programs.log_mel import HOP, log_mel
from flagsplit.targets.interface import Array, TensorSpec


def speech_features(facts: ProgramFacts, spec: TensorSpec, samples: NDArray[np.float32]) -> dict[str, Array]:
    """The inputs of `encode` for a sound at the program's rate.

    Args:
        facts: of the program.
        spec: the input of `encode`: [batch, samples], or [batch, bins, steps]; what has one length is padded to it.
        samples: mono, -1..1.

    Raises:
        ConfigError: the program is not for speech.
    """
    if facts.input == "audio":
        length = spec.shape[1]
        missing = length - len(samples) if isinstance(length, int) else 0
        return {spec.name: np.pad(samples, (0, max(missing, 0)))[None]}
    if facts.input != "log-mel":
        raise ConfigError(f"expected a program that reads sound, {facts.name} reads {facts.input}")
    bins, steps = spec.shape[1:]
    if isinstance(steps, str):
        steps = -(-len(samples) // HOP)
    return {spec.name: log_mel(samples, int(bins), steps)[None]}
