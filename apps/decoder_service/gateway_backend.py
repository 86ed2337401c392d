"""What the gateway needs of the parts behind it: a model that gives tokens, its words, and a listener for speech.

The gateway speaks HTTP and text and knows no engine; `flagsplit.apps.decoder_service` hands it backends for an engine
in this process, for one on other machines, and for replicas of Ray.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from flagsplit.errors import PeerError
from flagsplit.runtime.generation.events import Reason
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
        max_input_s: longest audio that is taken.
        created: seconds since 1970, or 0.
        tensors: boundary tensors that a WebSocket client may send instead of audio or text, each with its element type
            and shape, where None is any size.
    """

    name: str
    kind: Literal["speech", "text"]
    vocabulary: int
    max_positions: int
    owner: str = "flagsplit"
    languages: tuple[str, ...] = ()
    max_input_s: float = 3600.0
    created: int = 0
    tensors: Mapping[str, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """One stream.

    Attributes:
        client: on whose account.
        options: choices of the client.
        prompt: tokens to go on from; none is the model's own prompt.
        generated: tokens that the client has already, after the prompt; they are not given again.
        tensors: boundary tensors that a part of the model elsewhere computed, by name.
    """

    client: str
    options: GenerationOptions = field(default_factory=GenerationOptions)
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Some tokens of a stream, in order, each once.

    Attributes:
        tokens: their ids; may be none when the stream ends.
        reason: why it ended, "" if it did not.
        where: what made them, such as a tier or a replica.
    """

    tokens: tuple[int, ...]
    reason: Reason | Literal[""] = ""
    where: str = ""


@dataclass(frozen=True)
class Heard:
    """More of what was said.

    Attributes:
        text: to be appended to what came before, spaces included.
        tokens: what it was made of.
        start_s: where the stretch of audio begins that it belongs to.
        end_s: where that ends.
        ends: whether the stretch is complete.
        where: what made it.
    """

    text: str
    tokens: tuple[int, ...]
    start_s: float
    end_s: float
    ends: bool = False
    where: str = ""


class Tokenizer(Protocol):
    """Words to tokens and back."""

    def encode(self, text: str) -> Sequence[int]:
        """Tokens of a text, without those that begin or end a stream."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is no text, such as half a character, becomes U+FFFD."""


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


class Listener(Backend, Protocol):
    """A model of speech."""

    def read_audio(self, data: bytes) -> Array:
        """The samples of a recording: float32 [samples] of one channel at 16 kHz. Takes as long as it takes.

        Raises:
            InputError: it is no recording that can be read, or too long.
        """

    def listen(self, samples: Array, wanted: Wanted) -> AsyncGenerator[Heard, None]:
        """What is said, as it is understood. Closing the generator cancels it. Raises as `generate`."""
