"""The grammar of Whisper's timestamps, as published with it (`ApplyTimestampRules` in openai-whisper's decoding.py).

A text is phrases, each between the times at which it begins and ends: `<|0.00|> Ever tried.<|1.20|><|1.20|> Ever …`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.programs.program import ProgramFacts

_MAX_INITIAL_S: Final = 1.0
"""By when the first phrase has to begin."""


class TimestampRules:
    """Bars what may not follow, in Whisper's order of tokens: text, the stop token, special ones, times.

    Args:
        facts: of a program that has timestamps.
    """

    def __init__(self, facts: ProgramFacts) -> None:
        assert facts.first_timestamp_token is not None
        self._first = facts.first_timestamp_token
        self._stop = facts.stop_tokens[0]
        self._never = facts.no_timestamps_token
        self._last_initial = self._first + round(_MAX_INITIAL_S / facts.timestamp_s)

    def __call__(self, logits: NDArray[np.floating[Any]], generated: Sequence[int]) -> None:
        """See `Constraint`."""
        first = self._first
        if self._never is not None:
            logits[self._never] = -np.inf
        if not generated:
            logits[:first] = -np.inf
            logits[self._last_initial + 1 :] = -np.inf
            return
        ended = generated[-1] >= first
        is_pair = ended and (len(generated) < 2 or generated[-2] >= first)
        if is_pair:
            logits[first:] = -np.inf
        elif ended:
            logits[: self._stop] = -np.inf
        newest = next((token for token in reversed(generated) if token >= first), None)
        if newest is not None:
            # The next phrase may begin where the one before ended, but none ends where it began.
            logits[first : newest if ended and not is_pair else newest + 1] = -np.inf
        if _are_likelier(logits[first:], logits[:first]):
            logits[:first] = -np.inf


def _are_likelier(times: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> bool:
    """Whether all times together are likelier than each other token."""
    largest = times.max(initial=-np.inf)
    if not np.isfinite(largest):
        return False
    total = float(largest) + float(np.log(np.exp(times - largest).sum(dtype=np.float64)))
    return total > float(others.max())
