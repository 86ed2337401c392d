"""What one step is to do, and what is counted of steps."""

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from flagsplit.runtime.generation.stream import Stream
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array

_KEPT = 1024


@dataclass(frozen=True)
class Close:
    """Free a slot."""

    slot: int


@dataclass(frozen=True)
class Open:
    """Open a stream in its first slot, with room for so many tokens."""

    stream: Stream
    slot: int
    tokens: int


@dataclass(frozen=True)
class Copy:
    """Make a slot like another."""

    source: int
    target: int


@dataclass(frozen=True)
class Reserve:
    """Make room for a slot to get so long."""

    slot: int
    tokens: int


Change = Close | Open | Copy | Reserve
"""What is done to the slots of a step model."""


def make_change(change: Change, model: StepModel) -> None:
    """Have a step model make a change."""
    match change:
        case Close(slot):
            model.close_slot(slot)
        case Open(stream, slot, tokens):
            model.open(slot, stream.request.context, tokens)
        case Copy(source, target):
            model.copy(source, target)
        case Reserve(slot, tokens):
            model.reserve(slot, tokens)


@dataclass(frozen=True)
class Work:
    """What one stream does in a step.

    Attributes:
        stream: whose.
        slots: that it steps.
        tokens: what is appended to each.
        is_last: whether its next token is taken from the logits.
    """

    stream: Stream
    slots: tuple[int, ...]
    tokens: tuple[Array, ...]
    is_last: bool


@dataclass(frozen=True)
class Step:
    """What the step model is to do.

    Attributes:
        changes: to make, in this order: it is the one in which there is room for them.
        works: what to append then; may be empty.
    """

    changes: Sequence[Change]
    works: Sequence[Work]

    @property
    def slots(self) -> list[int]:
        """All slots that step."""
        return [slot for work in self.works for slot in work.slots]

    @property
    def tokens(self) -> list[Array]:
        """What is appended to each."""
        return [tokens for work in self.works for tokens in work.tokens]

    @property
    def changed(self) -> set[int]:
        """The slots that it changes and does not free."""
        changes = [change for change in self.changes if not isinstance(change, Close)]
        return {change.target if isinstance(change, Copy) else change.slot for change in changes}

    def without(self, streams: Collection[Stream]) -> "Step":
        """The same step, in which these streams do nothing."""
        return replace(self, works=[work for work in self.works if work.stream not in streams])


@dataclass
class Counts:
    """What happened so far, for metrics.

    Attributes:
        tokens: given out.
        prefilled: tokens and rows put into caches from which no token was taken.
        evictions: streams that lost their slots to others.
        failures: steps that the model did not do.
        batches: steps, by number of streams.
        ended: streams, by why they ended: a reason or a code.
        first_s: seconds to the first token, of the latest streams that got one.
    """

    tokens: int = 0
    prefilled: int = 0
    evictions: int = 0
    failures: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    first_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
