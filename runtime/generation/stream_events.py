"""What goes into and comes out of the machines of token streams, beside the events that all machines know.

Those of the service begin and end streams at its engine; those of the client come from and go to the application.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flagsplit.errors import FlagsplitError
from flagsplit.runtime.generation.events import Event as EngineEvent
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import Array


@dataclass(frozen=True)
class Generated:
    """The engine of a service says something of a stream."""

    event: EngineEvent


@dataclass(frozen=True)
class Begin:
    """Let the engine of a service go on with a stream."""

    generate: Generate


@dataclass(frozen=True)
class Quit:
    """Nobody wants a stream of that id from the engine any more."""

    stream_id: str


@dataclass(frozen=True)
class Place:
    """Where a token was made: the tier, and the address of the replica, "" on the client's own."""

    tier: str
    replica: str = ""


@dataclass(frozen=True)
class Scores:
    """How likely tokens of a stream were, where its options asked for that.

    Attributes:
        logprobs: log-probability of each, and of the stop token if one ended the stream.
        no_speech: how likely it is that nobody speaks, 0..1; told with the first tokens.
    """

    logprobs: tuple[float, ...] = ()
    no_speech: float = 0.0


NO_SCORES: Final = Scores()


@dataclass(frozen=True)
class StreamRequest:
    """A stream that an application asks for.

    Attributes:
        tensors: what crosses the cut of `plan`; nobody changes them any more. None for a stream of rows.
        prompt: tokens to begin with; none takes the model's own.
        options: of the generation.
        plan: whose cut the tensors cross.
        deadline: time by which it must be over.
        key: streams of one key are sent to one replica as long as it is there.
        input_s: seconds of input; 0 is not known.
        name: the application's own name for it, at most 64 bytes.
        delivered: tokens that the application has of this stream already; it goes on after them.
    """

    tensors: Mapping[str, Array] | None
    prompt: tuple[int, ...] = ()
    options: GenerationOptions = field(default_factory=GenerationOptions)
    plan: str = ""
    deadline: float = float("inf")
    key: str = ""
    input_s: float = 0.0
    name: str = ""
    delivered: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ask:
    """An application asks for a stream; `rid` was never used before in this client."""

    rid: int
    request: StreamRequest


@dataclass(frozen=True)
class Stop:
    """The application does not want the rest of a stream."""

    rid: int


@dataclass(frozen=True)
class Made:
    """The client's own loop made tokens `offset`.. of an attempt, or broke.

    Attributes:
        rid, attempt: of the `RunLocal` that asked for it.
        offset: number of the first, counted without the prompt.
        tokens: their ids.
        last: whether nothing follows.
        reason: why it ended, "" if it did not.
        scores: how likely it was, where that was asked for.
        error: what broke it, "" if nothing did.
    """

    rid: int
    attempt: int
    offset: int
    tokens: tuple[int, ...] = ()
    last: bool = False
    reason: str = ""
    error: str = ""
    scores: Scores = NO_SCORES


@dataclass(frozen=True)
class RowsMade:
    """The client's part of the model ran: `rows` float32 [n, width] are for the positions from `position` on."""

    rid: int
    position: int
    rows: Array | None
    error: str = ""


@dataclass(frozen=True)
class GiveTokens:
    """Give the application the next tokens of a stream: each token of a stream is given once, in order.

    There are none where only the scores of the end are told.
    """

    rid: int
    offset: int
    tokens: tuple[int, ...]
    place: Place
    scores: Scores = NO_SCORES


@dataclass(frozen=True)
class Over:
    """A stream is over, because of `reason`, or of an error."""

    rid: int
    reason: str
    error: FlagsplitError | None = None


@dataclass(frozen=True)
class RunLocal:
    """Let the client's own loop go on with a stream.

    Attributes:
        rid, attempt: to be named in each `Made`.
        request: what the application asked for.
        delivered: the tokens that were generated already.
    """

    rid: int
    attempt: int
    request: StreamRequest
    delivered: tuple[int, ...]


@dataclass(frozen=True)
class StopLocal:
    """Nobody wants what the client's own loop makes of a stream."""

    rid: int


@dataclass(frozen=True)
class MakeRows:
    """Let the client's part of the model run on the tokens from `position` on."""

    rid: int
    position: int
    tokens: tuple[int, ...]


StreamEvent = Generated | Ask | Stop | Made | RowsMade
StreamInstruction = Begin | Quit | GiveTokens | Over | RunLocal | StopLocal | MakeRows
