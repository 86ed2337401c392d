"""What is asked of the generation engine, and what it answers through its callback."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import Array

Reason = Literal["stop", "length", "deadline", "cancelled"]
"""Why a stream ended: a stop token, a limit of its length, its deadline, or the client's wish."""

Code = Literal["busy", "drain", "no-state", "deadline", "bad-input", "too-large", "broken"]
"""Why a stream was refused.

"busy", "drain", "no-state" and "broken" may be tried again, with the tokens that were delivered: in a while or
elsewhere ("busy" says in how long), elsewhere, with all rows, elsewhere. "deadline" and "bad-input" may not, and
"too-large" only elsewhere: an engine with more memory may have room for it.
"""

RETRYABLE: frozenset[Code] = frozenset({"busy", "drain", "no-state", "broken"})
"""Codes after which asking again, here or elsewhere, can help."""


@dataclass(frozen=True)
class Generate:
    """A stream is wanted.

    Attributes:
        stream_id: names it among the streams of this engine.
        client: on whose account it runs; clients get equal shares.
        context: see `StepModel.open`; kept until the stream ends, nobody changes it any more.
        tokens: the prompt, then the tokens that were generated already; none means the program's own prompt.
        generated: how many of `tokens`, the last ones, were generated: these are not given out again.
        options: choices of the client.
        deadline: time by which it must have ended, on the engine's clock (`time.monotonic`).
        input_s: seconds of input, for programs that generate only so many tokens a second; 0 takes it from the context.
        rows: for the later part of a split program: float32 [n, width], what the earlier part gave for the positions
            from `position` on. Then one token is generated, and the stream waits, keeping its cache, to be asked for
            the next under the same `stream_id`.
        position: how many rows the engine should have already; it refuses with "no-state" if it has others.
    """

    stream_id: str
    client: str
    context: Mapping[str, Array] | None
    tokens: tuple[int, ...] = ()
    generated: int = 0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    deadline: float = math.inf
    input_s: float = 0.0
    rows: Array | None = None
    position: int = 0


@dataclass(frozen=True)
class Timings:
    """Where the time of some tokens went.

    Attributes:
        wait_us: microseconds from the asking until its first step; the same for all tokens of a stream.
        first_us: from the asking until its first token.
        step_us: of the step that gave these tokens.
        batch: how many streams were in that step.
    """

    wait_us: int = 0
    first_us: int = 0
    step_us: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Tokens:
    """Tokens of a stream, in order, each once.

    Attributes:
        stream_id: whose.
        offset: index of the first of them among the generated tokens of the stream.
        tokens: token ids, without stop tokens; may be empty when the stream ends.
        done: whether these are the last.
        reason: why it ended, "" if it did not.
        timings: where the time went.
        logprobs: where they were asked for, of each token, and of the stop token if one ended the stream.
        no_speech: with the first event, where `logprobs` were asked for: how likely it is that nobody speaks.
    """

    stream_id: str
    offset: int
    tokens: tuple[int, ...]
    done: bool = False
    reason: Reason | Literal[""] = ""
    timings: Timings = field(default_factory=Timings)
    logprobs: tuple[float, ...] = ()
    no_speech: float = 0.0


@dataclass(frozen=True)
class Refused:
    """A stream was not taken, or could not be gone on with; nothing more comes of it.

    Attributes:
        stream_id: whose.
        code: what kind of trouble.
        reason: one line: what was expected, what came, what to do.
        retry_after_s: for "busy": in how many seconds there may be room.
    """

    stream_id: str
    code: Code
    reason: str
    retry_after_s: float = 0.0


Event = Tokens | Refused
"""What the engine's callback gets."""
