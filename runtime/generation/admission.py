"""Which streams are taken at all: those that make sense, and can be served in time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flagsplit.errors import ConfigError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.runtime.generation.constraints import constraint_of
from flagsplit.runtime.generation.events import Generate

_NEWEST_SHARE = 0.25
"""How much the last stream counts in what is expected of the next."""


@dataclass(frozen=True)
class SchedulerSettings:
    """Limits of a scheduler.

    Attributes:
        kv_bytes: how much the caches of all streams may take, also while they grow: the step model's limit.
        step_tokens: tokens of a step; what the streams that generate leave of it goes to prompts, at least a quarter.
        frame_tokens: what a frame of context costs when a stream is opened, in tokens.
        max_waiting: streams that may wait; more are refused.
        max_waiting_of_client: the same, for one client.
        max_wait_s: a stream that would wait for longer is refused.
        fair_after_s: after waiting for so long, a client that has fewer slots than another gets one of its.
        park_s: how long a stream that was not asked for its next token keeps its slot.

    Raises:
        ConfigError: a limit is below what makes sense.
    """

    kv_bytes: int = 1 << 30
    step_tokens: int = 128
    frame_tokens: float = 1 / 8
    max_waiting: int = 1024
    max_waiting_of_client: int = 256
    max_wait_s: float = 60.0
    fair_after_s: float = 0.25
    park_s: float = 30.0

    def __post_init__(self) -> None:
        for name, low in (("kv_bytes", 1), ("step_tokens", 1), ("max_waiting", 0), ("max_waiting_of_client", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: expected {low} or more, came {getattr(self, name)}")
        for name in ("frame_tokens", "max_wait_s", "fair_after_s", "park_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected 0 or more, came {getattr(self, name)}")


def fault_of(facts: ProgramFacts, request: Generate, slots: int) -> str | None:
    """What makes a stream impossible, in one line; None if nothing does."""
    return next(_faults(facts, request, slots), None)


def _faults(facts: ProgramFacts, request: Generate, slots: int) -> Iterator[str]:
    beams = request.options.beams
    if beams > slots:
        yield f"expected at most {slots} beams, as many as there are slots, came {beams}"
    try:
        constraint_of(facts, request.options.constraint)
    except ConfigError as error:
        yield str(error)
    if not 0 <= request.generated <= len(request.tokens) and request.rows is None:
        yield f"{request.generated} of {len(request.tokens)} tokens cannot have been generated"
    odd = [token for token in request.tokens if not 0 <= token < facts.vocabulary]
    if odd:
        yield f"expected tokens from 0 to {facts.vocabulary - 1}, came {odd[0]}"
    length = len(request.tokens) or len(facts.prompt)
    if request.rows is not None:
        rows = request.rows
        if beams > 1:
            yield "a program that is split between its layers cannot search with beams"
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != facts.width or not len(rows):
            yield f"expected rows float32 [n, {facts.width}], came {rows.dtype} {list(rows.shape)}"
        length = request.position + len(rows)
    if not length:
        yield "there is no token to begin with: the program has no prompt, give one"
    if length > facts.max_positions:
        yield f"expected at most {facts.max_positions} tokens, came {length}"
    if facts.kind == "encoder-decoder":
        yield from _context_faults(facts, request)


def _context_faults(facts: ProgramFacts, request: Generate) -> Iterator[str]:
    hidden = (request.context or {}).get("hidden")
    if hidden is None:
        yield "expected hidden states, came none: send what the encoder gave"
    elif hidden.ndim != 3 or hidden.shape[0] != 1 or hidden.shape[2] != facts.width or not hidden.shape[1]:
        yield f"expected hidden states [1, frames, {facts.width}], came {list(hidden.shape)}"
    elif not np.isfinite(hidden).all():
        yield "hidden states have values that are no finite numbers"


class WaitEstimate:
    """How long a new stream would wait, told from how long others were served."""

    def __init__(self) -> None:
        self._served_s = 0.0

    def served(self, took_s: float) -> None:
        """A stream had a slot for so long."""
        self._served_s += _NEWEST_SHARE * (took_s - self._served_s) if self._served_s else took_s

    def wait_s(self, ahead: int, running: int) -> float:
        """Seconds until a stream begins, with so many before it and so many that have slots."""
        return self._served_s * (ahead + 1) / max(1, running)
