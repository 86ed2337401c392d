"""`POST /v1/completions`: what is asked, the streams that answer it, and the answer, whole or as events."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from flagsplit.apps.decoder_service.gateway_backend import Backend, ModelFacts, Wanted
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_fields import Fields, wrong
from flagsplit.apps.decoder_service.gateway_streams import Delta, text_deltas
from flagsplit.apps.text.tokenizer import Tokenizer
from flagsplit.runtime.generation.options import GenerationOptions

MAX_PROMPTS: Final = 64
MAX_STOPS: Final = 4
_SEEDS: Final = 1 << 62
_LEAST_SHARE: Final = 1e-9
"""A `top_p` of 0 takes the likeliest token alone."""


@dataclass(frozen=True)
class Completion:
    """What a request asks for.

    Attributes:
        prompts: their tokens.
        echoed: what each answer begins with: the prompt as text if it is to be repeated, else "".
        count: answers for each prompt.
        options: of the first answer; the others have the seeds after it.
        stops: strings that end an answer.
        stream: whether the answer comes as events.
        include_usage: whether the last event says how many tokens there were.
    """

    prompts: tuple[tuple[int, ...], ...]
    echoed: tuple[str, ...]
    count: int
    options: GenerationOptions
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool

    @property
    def choices(self) -> int:
        """How many answers there are."""
        return len(self.prompts) * self.count

    def usage(self, generated: int) -> dict[str, int]:
        """How many tokens went in and came out."""
        asked = sum(map(len, self.prompts))
        return {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated}


def read_completion(fields: Fields, facts: ModelFacts, tokenizer: Tokenizer) -> Completion:
    """Check a request, without the field `model`.

    Raises:
        ApiError: a field has a wrong value, is not supported, or the prompt is too long.
    """
    prompts = _prompts(fields.raw("prompt"), facts, tokenizer)
    fields.refuse("suffix", ("",), "only what comes after a prompt is generated")
    fields.refuse("logprobs", (), "probabilities of tokens are not kept")
    fields.refuse("best_of", (1, fields.peek("n")), "ask for n answers and choose")
    echo = fields.flag("echo")
    echoed = tuple(tokenizer.decode(prompt) if echo else "" for prompt in prompts)
    return read_choices(fields, facts, prompts, echoed, fields.whole("max_tokens", 16, 1, facts.max_positions))


def read_choices(
    fields: Fields,
    facts: ModelFacts,
    prompts: tuple[tuple[int, ...], ...],
    echoed: tuple[str, ...],
    max_tokens: int,
) -> Completion:
    """The rest of a request: what all that ask for text have in common.

    Raises:
        ApiError: a field has a wrong value, is not supported or not known, or the prompt is too long.
    """
    for name in ("frequency_penalty", "presence_penalty"):
        fields.refuse(name, (0,), "leave it out")
    fields.refuse("logit_bias", ({},), "leave it out")
    fields.text("user", longest=512)
    count, stream = fields.whole("n", 1, 1, 128), fields.flag("stream")
    stream_options = fields.raw("stream_options") or {}
    if not isinstance(stream_options, Mapping) or (stream_options and not stream):
        raise wrong("stream_options", "an object, together with stream", stream_options)
    inner = Fields(stream_options)
    include_usage = inner.flag("include_usage")
    inner.end()
    options = GenerationOptions(
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=max(fields.number("top_p", 1.0, 0.0, 1.0), _LEAST_SHARE),
        top_k=fields.whole("top_k", 0, 0, facts.vocabulary),
        seed=fields.whole("seed", secrets.randbelow(_SEEDS), 0, _SEEDS),
    )
    stops = fields.texts("stop", MAX_STOPS, 512)
    fields.end()
    longest = max(map(len, prompts))
    if longest + max_tokens > facts.max_positions:
        raise ApiError(
            400,
            f"{facts.name} takes {facts.max_positions} tokens; {longest} of the prompt and {max_tokens} of the answer "
            "are more; shorten one",
            "context_length_exceeded",
            "prompt",
        )
    return Completion(prompts, echoed, count, options, stops, stream, include_usage)


def _prompts(asked: Any, facts: ModelFacts, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """A text, several, tokens, or several lists of tokens."""
    listed = [asked] if isinstance(asked, str) or _are_tokens(asked, facts) else asked
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_PROMPTS:
        raise wrong("prompt", f"a text, tokens, or a list of at most {MAX_PROMPTS} of either", asked)
    found = []
    for each in listed:
        if not isinstance(each, str) and not _are_tokens(each, facts):
            odd = (
                next((one for one in listed if not _are_tokens([one], facts)), each) if isinstance(each, int) else each
            )
            raise wrong("prompt", f"texts, or tokens from 0 to {facts.vocabulary - 1}", odd)
        found.append((*facts.begin, *tokenizer.encode(each)) if isinstance(each, str) else tuple(each))
        if not found[-1]:
            raise wrong("prompt", "at least one token to go on from", each)
    return tuple(found)


def _are_tokens(asked: Any, facts: ModelFacts) -> bool:
    return (
        isinstance(asked, list)
        and len(asked) > 0
        and all(type(token) is int and 0 <= token < facts.vocabulary for token in asked)
    )


async def choices(backend: Backend, asked: Completion, client: str) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all answers as they are made, each with the index of its answer.

    Raises:
        ApiError, FlagsplitError: one failed; the others are cancelled.
    """
    # One place: a client that does not read keeps the streams from running ahead of it in here.
    queue: asyncio.Queue[tuple[int, Delta | BaseException]] = asyncio.Queue(1)

    async def fill(index: int) -> None:
        try:
            prompt, copy = divmod(index, asked.count)
            options = replace(asked.options, seed=(asked.options.seed + copy) % _SEEDS)
            wanted = Wanted(client, options, asked.prompts[prompt])
            async with aclosing(text_deltas(backend, wanted, asked.stops)) as deltas:
                async for delta in deltas:
                    await queue.put((index, delta))
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is written
            await queue.put((index, error))

    tasks = [asyncio.create_task(fill(index)) for index in range(asked.choices)]
    try:
        left = len(tasks)
        while left:
            index, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            yield index, found
            left -= bool(found.reason)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Shape:
    """How a page writes its answers.

    Attributes:
        id_prefix: of their ids.
        whole, part: what an answer and an event are called.
        choice: one answer, of its index, its text and why it ended.
        more: more of it, of the same and whether it is the first.
    """

    id_prefix: str
    whole: str
    part: str
    choice: Callable[[int, str, str], dict[str, Any]]
    more: Callable[[int, str, str, bool], dict[str, Any]]


def _choice(index: int, text: str, reason: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason or None}


SHAPE: Final = Shape(
    "cmpl-", "text_completion", "text_completion", _choice, lambda index, text, reason, _: _choice(index, text, reason)
)


class Writer:
    """Writes the answers to one request.

    Args:
        asked: the request.
        shape: of the page.
        model: who answers.
    """

    def __init__(self, asked: Completion, shape: Shape, model: str) -> None:
        self._asked, self._shape = asked, shape
        name = f"{shape.id_prefix}{secrets.token_hex(12)}"
        self._about = {"id": name, "created": int(time.time()), "model": model}

    async def whole_answer(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> dict[str, Any]:
        """The answer in one piece."""
        asked = self._asked
        texts: list[list[str]] = [[asked.echoed[index // asked.count]] for index in range(asked.choices)]
        reasons, generated = [""] * asked.choices, 0
        async for index, delta in deltas:
            texts[index].append(delta.text)
            reasons[index] = delta.reason
            generated += delta.tokens
        listed = [self._shape.choice(index, "".join(text), reasons[index]) for index, text in enumerate(texts)]
        return {**self._about, "object": self._shape.whole, "choices": listed, "usage": asked.usage(generated)}

    async def events(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as events, without the end mark."""
        asked, about = self._asked, {**self._about, "object": self._shape.part}
        generated, begun = 0, set[int]()
        usage = {"usage": None} if asked.include_usage else {}
        async for index, delta in deltas:
            generated += delta.tokens
            text = delta.text if index in begun else asked.echoed[index // asked.count] + delta.text
            if text or delta.reason:
                choice = self._shape.more(index, text, delta.reason, index not in begun)
                yield {**about, "choices": [choice], **usage}
                begun.add(index)
        if asked.include_usage:
            yield {**about, "choices": [], "usage": asked.usage(generated)}
