"""Which tokens may follow those so far, where the tokens of a program have a grammar.

A constraint is named in the options of a stream and depends on the generated tokens alone, so that a stream that goes
on elsewhere, or a candidate of a search, is bound just as if it had been there from the beginning.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import ConfigError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.runtime.generation.timestamps import TimestampRules

TIMESTAMPS: Final = "timestamps"
"""Whisper's times, in pairs around each phrase."""


class Constraint(Protocol):
    """Bars tokens."""

    def __call__(self, logits: NDArray[np.floating[Any]], generated: Sequence[int]) -> None:
        """Make the logits [vocabulary] of tokens that may not follow the generated ones -inf.

        Those of tokens that are never taken are -inf already. At least one token stays if nothing but the rules bars
        any.
        """


def constraint_of(facts: ProgramFacts, name: str) -> Constraint | None:
    """The constraint of that name for a program; none for "".

    Raises:
        ConfigError: there is none, or the program has no such tokens.
    """
    if not name:
        return None
    if name not in _MAKERS:
        raise ConfigError(f"no constraint is called {name!r:.80}; there are {', '.join(_MAKERS)}")
    found = _MAKERS[name](facts)
    if found is None:
        raise ConfigError(f"program {facts.name} has no tokens for the constraint {name}; leave it out")
    return found


def _timestamps(facts: ProgramFacts) -> Constraint | None:
    return TimestampRules(facts) if facts.first_timestamp_token is not None else None


_MAKERS: Final[Mapping[str, Callable[[ProgramFacts], Constraint | None]]] = {TIMESTAMPS: _timestamps}
