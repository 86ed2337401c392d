"""What the gateway needs of the parts behind it: a model that gives tokens, its words, and a listener for speech.

The gateway speaks HTTP and text and knows no engine; `gateway_program` puts backends together for an engine in this
process, be it one of Ray's, and for decoder services elsewhere.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from flagsplit.apps.speech.transcriber import NewWord, Samples, Segment
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.errors import PeerError
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.targets.interface import Array


class BusyError(PeerError):
    """There is no room for a stream now.

    Args:
        reason: one line.
        retry_after_s: in how many seconds there may be room.
    """

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


Cut = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Tensors that cross a cut: for each its element type and its shape, where None is any size."""


@dataclass(frozen=True)
class ModelFacts:
    """What clients are told of a model, and what their wishes are checked against.

    Attributes:
        name: by which clients ask for it.
        kind: what it reads.
        vocabulary: how many tokens there are.
        max_positions: tokens that a stream may have, prompt included.
        owner: who made it.
        languages: ISO 639-1 codes of what it understands; none says nothing.
        begin: tokens before a text that is gone on from.
        created: seconds since 1970, or 0.
        cuts: by name of a plan, the tensors that a WebSocket client may send instead of audio or text.
    """

    name: str
    kind: Literal["speech", "text"]
    vocabulary: int
    max_positions: int
    owner: str = "flagsplit"
    languages: tuple[str, ...] = ()
    begin: tuple[int, ...] = ()
    created: int = 0
    cuts: Mapping[str, Cut] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """One stream.

    Attributes:
        client: on whose account.
        options: choices of the client.
        prompt: tokens to go on from; none is the model's own prompt.
        generated: tokens that the client has already, after the prompt; they are not given again.
        plan: whose cut the tensors cross; "" where the tensors are the model's input.
        tensors: by name.
        input_s: seconds of audio that the tensors are made of; 0 is not known.
        times: whether phrases are to have the times that the model gives, if it can; for listening.
    """

    client: str
    options: GenerationOptions = field(default_factory=GenerationOptions)
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    plan: str = ""
    tensors: Mapping[str, Array] = field(default_factory=dict)
    input_s: float = 0.0
    times: bool = False


@dataclass(frozen=True)
class Piece:
    """Some tokens of a stream, in order, each once.

    Attributes:
        tokens: their ids; may be none when the stream ends.
        reason: why it ended, "" if it did not: "stop", "length", "deadline" or "cancelled".
        where: what made them, such as a tier or a replica.
    """

    tokens: tuple[int, ...]
    reason: str = ""
    where: str = ""


class Backend(Protocol):
    """A model that gives tokens. Used on one event loop."""

    @property
    def facts(self) -> ModelFacts:
        """What it is."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its words."""

    def not_ready(self) -> str:
        """Why it takes no streams now, "" if it does."""

    def generate(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        """Tokens as they are made. Closing the generator cancels the stream.

        Raises:
            BusyError: there is no room; nothing was generated.
            InputError: the prompt or the tensors are not what the model takes.
            PeerError: nobody who could go on is left.
        """


class Sound(Protocol):
    """A recording, read block by block."""

    @property
    def seconds(self) -> float:
        """How long it is, as far as it is known."""

    def __enter__(self) -> Self:
        """It is open already."""

    def __exit__(self, *_: object) -> None:
        """Free what it holds."""

    def interrupt(self) -> None:
        """Nobody listens any more: what waits for more of it is to end. From any thread."""

    def blocks(self, rate_hz: int = 0) -> Iterator[Samples]:
        """One channel from the beginning, float32 in -1..1, so many samples a second."""


class Listener(Backend, Protocol):
    """A model of speech."""

    def open_sound(self, data: bytes) -> Sound:
        """A recording that somebody sent.

        Raises:
            InputError: it is none that can be read.
        """

    def listen(self, sound: Sound, wanted: Wanted, *, live: bool = False) -> AsyncGenerator[NewWord | Segment, None]:
        """Words as they become certain, and after those of a window its segment. Closing the generator cancels it.

        Args:
            sound: is read as it is listened to.
            wanted: what the streams of its windows are to be like.
            live: give words before their window ends, which is several times the work.

        Raises: as `generate`.
        """
