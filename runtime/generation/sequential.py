"""One stream, one step after the other: what the phone runs, and what every other way must equal."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np

from flagsplit.errors import InputError, InternalError, RefusedError
from flagsplit.runtime.generation.admission import SchedulerSettings, fault_of
from flagsplit.runtime.generation.events import Generate, Refused
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sampling import choose
from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.step import make_change
from flagsplit.runtime.generation.stream import begin
from flagsplit.targets.generation.step_model import StepModel
from flagsplit.targets.interface import Array

_NO_LIMIT = 1 << 62


def generate(
    model: StepModel,
    context: Mapping[str, Array] | None,
    tokens_so_far: tuple[int, ...] = (),
    options: GenerationOptions | None = None,
    *,
    generated: int = 0,
    input_s: float = 0.0,
) -> Iterator[int]:
    """Generate tokens as they are asked for, in the model's first slots, which must be free.

    Args:
        model: nobody else uses it meanwhile.
        context: see `StepModel.open`.
        tokens_so_far: the prompt, then tokens that were generated already; none means the program's prompt.
        options: choices; a deadline is not kept, since the caller can stop asking.
        generated: how many of `tokens_so_far`, the last ones, were generated.
        input_s: seconds of input, for programs that generate only so many tokens a second; 0 takes it from the context.

    Yields:
        Token ids, without those that were generated already and without the stop token.

    Raises:
        InputError: the tokens, the context or the options cannot be.
        InternalError: the logits are no finite numbers.
    """
    request = Generate("", "", context, tokens_so_far, generated, options or GenerationOptions(), input_s=input_s)
    fault = fault_of(model.facts, request, model.slots)
    if fault is not None:
        raise InputError(fault)
    return _search(model, request) if request.options.beams > 1 else _greedy_or_drawn(model, request)


def _greedy_or_drawn(model: StepModel, request: Generate) -> Iterator[int]:
    stream = begin(model.facts, request, 0, 0.0)
    fed = stream.tokens
    try:
        model.open(0, request.context)
        while stream.generated < stream.limit:
            logits = model.step([0], [np.array(fed, np.int64)])
            (token,) = choose(logits, [stream.rule], [stream.generated])
            if token < 0:
                raise InternalError(f"program {model.facts.name} gave logits that are no finite numbers")
            if token in stream.rule.stops:
                return
            stream.tokens.append(token)
            fed = [token]
            yield token
    finally:
        model.close_slot(0)


def _search(model: StepModel, request: Generate) -> Iterator[int]:
    """A search gives its tokens at the end; the scheduler moves its candidates between slots."""
    scheduler = Scheduler(model, SchedulerSettings(kv_bytes=_NO_LIMIT))
    events = scheduler.submit(request, 0.0)
    try:
        while not events:
            step = scheduler.plan(0.0)
            if step is None:
                raise InternalError("a beam search has neither ended nor anything to do; please report it")
            for change in step.changes:
                make_change(change, model)
            events = scheduler.finish(step, model.step(step.slots, step.tokens), 0.0, 0.0)
    finally:
        for slot in range(model.slots):
            with suppress(Exception):
                model.close_slot(slot)
    for event in events:
        if isinstance(event, Refused):
            raise RefusedError(event.reason)
        yield from event.tokens
