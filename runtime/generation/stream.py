"""One stream as the scheduler sees it: its tokens, how many of them are in the cache, and what it does next."""

import enum
import math
from dataclasses import dataclass, field

import numpy as np

from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.runtime.generation.beams import BeamSearch
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.sampling import Floats, TokenRule, log_probability
from flagsplit.targets.interface import Array


class State(enum.Enum):
    """Where a stream is.

    It waits for a slot, has one, keeps one until its client asks for the next token, or lost one and what was in it.
    """

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"
    LOST = "lost"


@dataclass(eq=False)
class Stream:
    """One stream.

    Attributes:
        request: what was asked for.
        number: its place in the order of asking.
        asked: when.
        deadline: by when it must have ended.
        rule: how its tokens are taken.
        tokens: prompt and generated tokens.
        prompt: how many of them are the prompt.
        limit: how many to generate at most.
        frames: of its context.
        state: where it is.
        slots: that it holds; the first has its tokens, the others are for candidates.
        held: how many of its tokens, or rows, are in the cache.
        room: how many there is room for in each slot.
        most_held: the most that ever were: tokens that are put in again are not charged again.
        search: its beam search, once begun.
        alone: whether it steps alone, because a step with it and others failed.
        since: when it began to wait, this time.
        failures: steps with it that failed.
        began: when it first got a slot.
        first: when its first token came.
        told: how many generated tokens were given out.
        listens_at: after how many tokens the logits say how likely it is that nobody speaks; 0 is never, or no more.
        no_speech: how likely it is.
    """

    request: Generate
    number: int
    asked: float
    deadline: float
    rule: TokenRule
    tokens: list[int]
    prompt: int
    limit: int
    frames: int
    state: State = State.WAITING
    slots: list[int] = field(default_factory=list)
    held: int = 0
    room: int = 0
    most_held: int = 0
    search: BeamSearch | None = None
    alone: bool = False
    failures: int = 0
    since: float = 0.0
    began: float = math.nan
    first: float = math.nan
    told: int = 0
    listens_at: int = 0
    no_speech: float = 0.0

    @property
    def id(self) -> str:
        """Its name."""
        return self.request.stream_id

    @property
    def client(self) -> str:
        """On whose account it runs."""
        return self.request.client

    @property
    def generated(self) -> int:
        """How many tokens it has generated, earlier attempts counted."""
        return len(self.tokens) - self.prompt

    @property
    def made(self) -> list[int]:
        """The tokens that it has generated."""
        return self.tokens[self.prompt :]

    @property
    def beams(self) -> int:
        """How many slots it needs."""
        return self.rule.options.beams

    @property
    def length(self) -> int:
        """How many tokens or rows it will hold in each slot after its next steps."""
        if self.request.rows is not None:
            return self.request.position + len(self.request.rows)
        candidates = 0 if self.search is None or not self.search.live else len(self.search.live[0].tokens)
        return len(self.tokens) + candidates

    @property
    def longest(self) -> int:
        """How many tokens or rows it will hold at most."""
        return self.length + self.limit - self.generated

    @property
    def pending(self) -> int:
        """How many tokens or rows are to be put into the cache before the next token can be taken."""
        return self.length - self.held

    def next_work(self, most: int) -> tuple[tuple[int, ...], tuple[Array, ...]]:
        """Slots and what to append to them, at most so many tokens each."""
        if self.search is not None:
            ends = [np.array([each.tokens[-1]], np.int64) for each in self.search.live]
            return tuple(self.slots[: len(ends)]), tuple(ends)
        count = min(most, self.pending)
        if self.listens_at > self.held:
            count = min(count, self.listens_at - self.held)
        if self.request.rows is not None:
            at = self.held - self.request.position
            return (self.slots[0],), (self.request.rows[at : at + count],)
        return (self.slots[0],), (np.array(self.tokens[self.held : self.held + count], np.int64),)

    def listen(self, logits: Floats, no_speech_token: int | None) -> None:
        """Look at the logits [vocabulary] after the tokens that are held, before any are barred."""
        if no_speech_token is not None and 0 < self.listens_at <= self.held:
            self.no_speech = round(math.exp(log_probability(logits, no_speech_token)), 6)
            self.listens_at = 0

    def log_probabilities(self, logits: Floats, token: int) -> tuple[float, ...]:
        """That of a token that was taken, if anybody wants to know."""
        return (log_probability(logits, token),) if self.rule.options.logprobs else ()

    def seated(self, now: float) -> None:
        """It got its slots."""
        if math.isnan(self.began):
            self.began = now

    def start_over(self) -> None:
        """It lost its slots: all tokens are to be put in again; rows that only its client has, cannot."""
        self.state = State.LOST if self.request.position else State.WAITING
        self.held, self.room, self.search = 0, 0, None


def begin(facts: ProgramFacts, request: Generate, number: int, now: float) -> Stream:
    """A stream as it was asked for; the request was checked."""
    options = request.options
    tokens = [] if request.rows is not None else list(request.tokens) or list(facts.prompt)
    prompt = len(tokens) - request.generated
    frames = frames_of(request)
    limit = min(options.max_tokens, facts.max_positions - max(0, prompt))
    if facts.tokens_per_s and request.input_s:
        limit = min(limit, facts.most_tokens(request.input_s))
    if facts.tokens_per_frame is not None and frames:
        limit = min(limit, facts.most_tokens_of(frames))
    late = min(request.deadline, now + options.deadline_s if options.deadline_s else math.inf)
    rule = TokenRule.of(facts, options)
    found = Stream(request, number, now, late, rule, tokens, prompt, limit, frames, told=request.generated)
    if options.logprobs and facts.no_speech_token is not None and not found.generated and tokens:
        # Behind the token with which all prompts of the program start.
        found.listens_at = tokens.index(facts.prompt[0]) + 1 if facts.prompt and facts.prompt[0] in tokens else prompt
    return found


def frames_of(request: Generate) -> int:
    """How many frames the context of a stream has."""
    return max((array.shape[1] for array in (request.context or {}).values() if array.ndim > 1), default=0)
