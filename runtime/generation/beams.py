"""Beam search: several candidates at once, of which the best by length-normalized log-probability wins.

The rules are those of Whisper's decoder: of all continuations the likeliest are looked at in order; one that ends with
a stop token is set aside, the others go on, as many as there are beams; it ends when as many were set aside as there
are beams. A candidate's score is its log-probability (that of its stop token counted) over its length (not counted) to
the power of the penalty. Pure: what runs the steps calls `advance` with their logits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flagsplit.runtime.generation.sampling import Floats, TokenRule, suppress


@dataclass(frozen=True)
class Candidate:
    """A continuation and its log-probability; `logprobs` are those of its tokens and of its stop token, if any."""

    tokens: tuple[int, ...]
    log_probability: float
    logprobs: tuple[float, ...] = ()

    def followed(self, token: int | None, total: float) -> "Candidate":
        """With one more token, or None for a stop token, and the log-probability that it then has."""
        tokens = self.tokens if token is None else (*self.tokens, token)
        return Candidate(tokens, total, (*self.logprobs, round(total - self.log_probability, 6)))

    def score(self, length_penalty: float) -> float:
        """What candidates of unlike length are compared by."""
        return float(self.log_probability / max(1, len(self.tokens)) ** length_penalty)


class BeamSearch:
    """One search.

    Args:
        rule: how tokens are taken; its options say how many beams.
        limit: tokens of the longest candidate; at least 1.
        before: the tokens that the stream has generated before the search.
    """

    def __init__(self, rule: TokenRule, limit: int, before: tuple[int, ...] = ()) -> None:
        self._rule = rule
        self._limit = limit
        self._before = before
        self._finished: list[Candidate] = []
        self._cut: list[Candidate] = []
        self.live: list[Candidate] = [Candidate((), 0.0)]
        """Candidates that go on, the likeliest first; empty when the search has ended."""

    @property
    def best(self) -> tuple[tuple[int, ...], Literal["stop", "length"]]:
        """The tokens of the best candidate, and why it ended; of a search that has ended."""
        found, reason = self.winner
        return found.tokens, reason

    @property
    def winner(self) -> tuple[Candidate, Literal["stop", "length"]]:
        """The best candidate, and why it ended; of a search that has ended."""
        penalty = self._rule.options.length_penalty
        stopped = max(self._finished, key=lambda each: each.score(penalty), default=None)
        if stopped is None:
            return self._cut[0], "length"
        cut = max(self._cut, key=lambda each: each.score(penalty), default=stopped)
        if cut.score(penalty) > stopped.score(penalty):
            return cut, "length"
        return stopped, "stop"

    def advance(self, logits: Floats) -> list[int]:
        """Go on by one token.

        Args:
            logits: float32 [candidates, vocabulary] of `live`; changed.

        Returns:
            For each candidate of the new `live`, the index of the one before that it continues.
        """
        count = len(self.live)
        suppress(logits, [self._rule] * count, [(*self._before, *each.tokens) for each in self.live])
        totals = np.array([each.log_probability for each in self.live])[:, None] + _log_softmax(logits)
        beams, parents, going = self._rule.options.beams, list[int](), list[Candidate]()
        for place in _in_order(totals.ravel(), beams * (1 + len(self._rule.stops))):
            parent, token = divmod(int(place), totals.shape[1])
            total = float(totals[parent, token])
            if token in self._rule.stops:
                self._finished.append(self.live[parent].followed(None, total))
                if len(self._finished) == beams:
                    break
                continue
            going.append(self.live[parent].followed(token, total))
            parents.append(parent)
            if len(going) == beams:
                break
        if len(self._finished) >= beams:
            going = []
        elif not going:
            self._cut = [] if self._finished else self.live
        elif len(going[0].tokens) >= self._limit:
            self._cut, going = going[: beams - len(self._finished)], []
        self.live = going
        return parents[: len(going)]


def _log_softmax(logits: Floats) -> Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]


def _in_order(values: Floats, count: int) -> list[int]:
    """Places of the largest finite values, the largest first, of equal ones the first."""
    if count < len(values):
        few = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
    else:
        few = np.arange(len(values))
    few = few[np.isfinite(values[few])]
    return [int(each) for each in few[np.argsort(-values[few], kind="stable")][:count]]
