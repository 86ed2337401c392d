"""The next token from logits: the likeliest, or one that is drawn.

What is drawn depends on the logits, the stream's seed and the number of the token, and on nothing else: a stream that
goes on elsewhere goes on with the same tokens, and batch mates change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.runtime.generation.constraints import Constraint, constraint_of
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import Array

Floats = NDArray[np.floating[Any]]
_FEW = 512
"""Among how many likeliest tokens the ones of `top_p` are looked for first: sorting a vocabulary takes milliseconds."""


@dataclass(frozen=True)
class TokenRule:
    """How one stream takes its tokens.

    Attributes:
        options: of the client.
        stops: tokens that end it.
        never: tokens that are never taken.
        not_first: more tokens, that are not taken as the first one.
        constraint: bars tokens by those before, or None.
    """

    options: GenerationOptions
    stops: frozenset[int]
    never: Array
    not_first: Array
    constraint: Constraint | None = None

    @classmethod
    def of(cls, facts: ProgramFacts, options: GenerationOptions) -> "TokenRule":
        """The program's rules and the client's; tokens that are not of the vocabulary do nothing.

        Raises:
            ConfigError: the program knows no constraint of that name.
        """
        never = sorted({*facts.suppressed, *(each for each in options.suppress if each < facts.vocabulary)})
        stops = frozenset((*facts.stop_tokens, *options.stop))
        not_first = np.array(facts.begin_suppressed, np.int64)
        return cls(options, stops, np.array(never, np.int64), not_first, constraint_of(facts, options.constraint))


def choose(logits: Floats, rules: Sequence[TokenRule], generated: Sequence[Sequence[int]]) -> list[int]:
    """The next token of each stream.

    Args:
        logits: float32 [streams, vocabulary]; those of tokens that are not to be taken become -inf.
        rules: one for each stream.
        generated: the tokens that each has generated before.

    Returns:
        One token a stream; -1 where no token has a finite logit.
    """
    suppress(logits, rules, generated)
    tokens = np.argmax(logits, axis=1)
    for row, (rule, before) in enumerate(zip(rules, generated, strict=True)):
        if not np.isfinite(logits[row, tokens[row]]):
            tokens[row] = -1
        elif rule.options.temperature > 0:
            tokens[row] = draw(logits[row], rule.options, uniform(rule.options.seed, len(before)))
    return [int(token) for token in tokens]


def suppress(logits: Floats, rules: Sequence[TokenRule], generated: Sequence[Sequence[int]]) -> None:
    """Make the logits of tokens that are not to be taken -inf; arguments as of `choose`."""
    for row, (rule, before) in enumerate(zip(rules, generated, strict=True)):
        if rule.never.size:
            logits[row, rule.never] = -np.inf
        if not before and rule.not_first.size:
            logits[row, rule.not_first] = -np.inf
        if rule.constraint is not None:
            rule.constraint(logits[row], before)


def log_probability(logits: Floats, token: int) -> float:
    """The natural logarithm of a token's probability at temperature 1, to six digits: what peers tell each other.

    Args:
        logits: [vocabulary]; that of the token is finite.
        token: which.
    """
    largest = logits.max()
    return round(float(logits[token] - largest) - float(np.log(np.exp(logits - largest).sum(dtype=np.float64))), 6)


def uniform(seed: int, number: int) -> float:
    """The random number in [0, 1) of a stream's token: the first output of Philox, key `seed`, counter `number`."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=number << 64)).random())


def draw(logits: Floats, options: GenerationOptions, at: float) -> int:
    """A token by its probability.

    Args:
        logits: [vocabulary]; the largest is finite.
        options: temperature above 0, top_k, top_p. Tokens as likely as the last of `top_k` are kept too.
        at: random number in [0, 1).
    """
    # Against the largest first: what is left is 0 or less, and does not become infinite against infinite.
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - float(logits.max())) / options.temperature
    kept: Array = np.arange(len(scaled))
    if 0 < options.top_k < len(scaled):
        kept = _likeliest(scaled, options.top_k)
    weights = np.exp(scaled[kept])
    if options.top_p < 1:
        kept, weights = _nucleus(kept, weights, options.top_p)
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, at * sums[-1], side="right"))
    return int(kept[min(place, int(np.flatnonzero(weights)[-1]))])


def _likeliest(values: Floats, count: int) -> NDArray[np.intp]:
    """Where the largest are, in order of place; ties with the last of them too."""
    return np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])


def _nucleus(kept: Array, weights: Floats, top_p: float) -> tuple[Array, Floats]:
    """The likeliest tokens that have `top_p` of the weight together, the likeliest first; at least one."""
    wanted = top_p * weights.sum()
    few = _likeliest(weights, _FEW) if len(weights) > _FEW else np.arange(len(weights))
    if weights[few].sum() < wanted:
        few = np.arange(len(weights))
    order = few[np.argsort(-weights[few], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), wanted, side="left")) + 1
    return kept[order[:count]], weights[order[:count]]
