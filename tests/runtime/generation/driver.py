"""Drives a scheduler and a hashed step model in virtual time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flagsplit.errors import InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Event, Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.sequential import generate
from flagsplit.runtime.generation.step import make_change
from flagsplit.runtime.generation.stream import State
from flagsplit.runtime.generation.testing import HashModel, hidden

STEP_S = 0.01


@dataclass
class Outcome:
    """What came of a stream."""

    generated: int = 0
    tokens: list[int] = field(default_factory=list)
    last: Event | None = None
    ended_s: float = math.nan
    first_s: float = math.nan
    logprobs: list[float] = field(default_factory=list)
    no_speech: float = 0.0


class Driver:
    """A scheduler, its model, and what came of each stream; every step takes `STEP_S`."""

    def __init__(self, model: HashModel, settings: SchedulerSettings | None = None) -> None:
        self.settings = settings or SchedulerSettings()
        self.model = model
        self.scheduler = Scheduler(model, self.settings)
        model.limit(self.settings.kv_bytes)
        self.now = 0.0
        self.outcomes: dict[str, Outcome] = {}

    def submit(self, request: Generate) -> Outcome:
        self.outcomes[request.stream_id] = Outcome(request.generated)
        self.hear(self.scheduler.submit(request, self.now))
        return self.outcomes[request.stream_id]

    def cancel(self, stream_id: str) -> None:
        self.hear(self.scheduler.cancel(stream_id))

    def hear(self, events: Sequence[Event]) -> None:
        for event in events:
            outcome = self.outcomes[event.stream_id]
            assert outcome.last is None, "nothing comes after the end"
            if isinstance(event, Tokens):
                assert event.offset == outcome.generated + len(outcome.tokens), "nothing is lost and nothing told twice"
                outcome.tokens += event.tokens
                outcome.logprobs += event.logprobs
                outcome.no_speech = outcome.no_speech or event.no_speech
                if event.tokens and math.isnan(outcome.first_s):
                    outcome.first_s = self.now
            if isinstance(event, Refused) or event.done:
                outcome.last = event
                outcome.ended_s = self.now

    def step(self) -> bool:
        """One step, checked against the budget; whether there was anything to do."""
        self.hear(self.scheduler.expire(self.now))
        step = self.scheduler.plan(self.now)
        if step is None:
            return False
        for change in step.changes:
            make_change(change, self.model)
        self.now += STEP_S
        if step.works:
            prompts = [len(tokens) for work in step.works for tokens in work.tokens if len(tokens) > 1]
            assert sum(prompts) <= self.settings.step_tokens
            try:
                logits = self.model.step(step.slots, step.tokens)
            except InternalError as error:
                if "on purpose" not in str(error):
                    raise
                self.hear(self.scheduler.fail(step, str(error), self.now))
            else:
                self.hear(self.scheduler.finish(step, logits, self.now, STEP_S))
        assert self.model.most_bytes <= self.settings.kv_bytes
        return True

    def run(self, until: Callable[[], bool] = lambda: False, most: int = 20_000) -> None:
        """Step until there is nothing to do."""
        for _ in range(most):
            if until() or not self.step():
                return
        raise AssertionError("it does not end")

    def running(self) -> int:
        return len(self.scheduler.in_state(State.RUNNING))


def request(number: int, client: str = "a", frames: int = 3, **options: object) -> Generate:
    """A stream with a context of its own."""
    chosen = GenerationOptions(**options)  # type: ignore[arg-type]
    return Generate(str(number), client, hidden(number, frames), options=chosen)


def alone(asked: Generate, model: HashModel) -> list[int]:
    """What the sequential loop gives for a stream."""
    other = HashModel(16, model.facts, stop_share=model.stop_share)
    return list(
        generate(other, asked.context, asked.tokens, asked.options, generated=asked.generated, input_s=asked.input_s)
    )
