"""One stream, one step after the other: what the phone runs, and what every other way must equal."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress

from flagsplit.errors import InputError, InternalError, RefusedError
from flagsplit.runtime.generation.admission import SchedulerSettings, fault_of
from flagsplit.runtime.generation.events import Generate, Refused, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sampling import Floats, choose
from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.step import make_change
from flagsplit.runtime.generation.stream import Stream, begin
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
    """Generate tokens as they are asked for; arguments and errors as for `events`.

    Yields:
        Token ids, without those that were generated already and without the stop token.
    """
    found = events(model, context, tokens_so_far, options, generated=generated, input_s=input_s)
    return _tokens(found)


def _tokens(found: Generator[Tokens]) -> Iterator[int]:
    with closing(found):
        for event in found:
            yield from event.tokens


def events(
    model: StepModel,
    context: Mapping[str, Array] | None,
    tokens_so_far: tuple[int, ...] = (),
    options: GenerationOptions | None = None,
    *,
    generated: int = 0,
    input_s: float = 0.0,
) -> Generator[Tokens]:
    """Generate tokens as they are asked for, in the model's first slots, which must be free.

    Args:
        model: nobody else uses it meanwhile.
        context: see `StepModel.open`.
        tokens_so_far: the prompt, then tokens that were generated already; none means the program's prompt.
        options: choices; a deadline is not kept, since the caller can stop asking.
        generated: how many of `tokens_so_far`, the last ones, were generated.
        input_s: seconds of input, for programs that generate only so many tokens a second; 0 takes it from the context.

    Yields:
        Tokens without those that were generated already; the last event says why it is over.

    Raises:
        InputError: the tokens, the context or the options cannot be.
        InternalError: the logits are no finite numbers.
    """
    request = Generate("", "", context, tokens_so_far, generated, options or GenerationOptions(), input_s=input_s)
    fault = fault_of(model.facts, request, model.slots)
    if fault is not None:
        raise InputError(fault)
    return _search(model, request) if request.options.beams > 1 else _greedy_or_drawn(model, request)


def _greedy_or_drawn(model: StepModel, request: Generate) -> Generator[Tokens]:
    stream = begin(model.facts, request, 0, 0.0)
    stream.slots = [0]
    try:
        model.open(0, request.context)
        while stream.generated < stream.limit:
            _, fed = stream.next_work(stream.pending)
            (logits,) = model.step([0], fed)
            stream.held += len(fed[0])
            stream.listen(logits, model.facts.no_speech_token)
            if not stream.pending:
                event = _take(stream, logits, model.facts.name)
                yield event
                if event.done:
                    return
        yield Tokens(stream.id, stream.told, (), True, "length")
    finally:
        model.close_slot(0)


def _take(stream: Stream, logits: Floats, program: str) -> Tokens:
    """The next token of a stream, out of logits [vocabulary]."""
    (token,) = choose(logits[None], [stream.rule], [stream.made])
    if token < 0:
        raise InternalError(f"program {program} gave logits that are no finite numbers")
    logprobs, offset = stream.log_probabilities(logits, token), stream.told
    no_speech = 0.0 if offset else stream.no_speech
    if token in stream.rule.stops:
        return Tokens(stream.id, offset, (), True, "stop", logprobs=logprobs, no_speech=no_speech)
    stream.tokens.append(token)
    stream.told += 1
    return Tokens(stream.id, offset, (token,), logprobs=logprobs, no_speech=no_speech)


def _search(model: StepModel, request: Generate) -> Generator[Tokens]:
    """A search gives its tokens at the end; the scheduler moves its candidates between slots."""
    scheduler = Scheduler(model, SchedulerSettings(kv_bytes=_NO_LIMIT))
    found = scheduler.submit(request, 0.0)
    try:
        while not found:
            step = scheduler.plan(0.0)
            if step is None:
                raise InternalError("a beam search has neither ended nor anything to do; please report it")
            for change in step.changes:
                make_change(change, model)
            found = scheduler.finish(step, model.step(step.slots, step.tokens), 0.0, 0.0)
    finally:
        for slot in range(model.slots):
            with suppress(Exception):
                model.close_slot(slot)
    for event in found:
        if isinstance(event, Refused):
            raise RefusedError(event.reason)
        yield event
