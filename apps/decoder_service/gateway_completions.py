"""`POST /v1/completions`: what is asked, the streams that answer it, and the answer, whole or as events."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
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
    count = fields.whole("n", 1, 1, 128)
    fields.refuse("best_of", (1, count), "ask for n answers and choose")
    for name in ("frequency_penalty", "presence_penalty"):
        fields.refuse(name, (0,), "leave it out")
    fields.refuse("logit_bias", ({},), "leave it out")
    fields.refuse("logprobs", (), "probabilities of tokens are not kept")
    fields.refuse("suffix", ("",), "only what comes after a prompt is generated")
    fields.text("user", longest=512)
    echo, stream = fields.flag("echo"), fields.flag("stream")
    stream_options = fields.raw("stream_options") or {}
    if not isinstance(stream_options, Mapping) or (stream_options and not stream):
        raise wrong("stream_options", "an object, together with stream", stream_options)
    inner = Fields(stream_options)
    include_usage = inner.flag("include_usage")
    inner.end()
    found = Completion(
        prompts,
        tuple(tokenizer.decode(prompt) if echo else "" for prompt in prompts),
        count,
        _options(fields, facts),
        fields.texts("stop", MAX_STOPS, 512),
        stream,
        include_usage,
    )
    fields.end()
    longest = max(map(len, prompts))
    if longest + found.options.max_tokens > facts.max_positions:
        raise ApiError(
            400,
            f"{facts.name} takes {facts.max_positions} tokens; {longest} of the prompt and {found.options.max_tokens} "
            "of the answer are more; shorten one",
            "context_length_exceeded",
            "prompt",
        )
    return found


def _options(fields: Fields, facts: ModelFacts) -> GenerationOptions:
    return GenerationOptions(
        max_tokens=fields.whole("max_tokens", 16, 1, facts.max_positions),
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=max(fields.number("top_p", 1.0, 0.0, 1.0), 1e-9),
        top_k=fields.whole("top_k", 0, 0, facts.vocabulary),
        seed=fields.whole("seed", secrets.randbelow(_SEEDS), 0, _SEEDS),
    )


def _prompts(asked: Any, facts: ModelFacts, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """A text, several, tokens, or several lists of tokens."""
    listed = [asked] if isinstance(asked, str) or _are_tokens(asked, facts) else asked
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_PROMPTS:
        raise wrong("prompt", f"a text, tokens, or a list of at most {MAX_PROMPTS} of either", asked)
    found = []
    for each in listed:
        if not isinstance(each, str) and not _are_tokens(each, facts):
            raise wrong("prompt", f"texts, or tokens from 0 to {facts.vocabulary - 1}", each)
        found.append(tuple(tokenizer.encode(each) if isinstance(each, str) else each))
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


def head(model: str) -> dict[str, Any]:
    """What every event and every answer of one request begins with."""
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def choice(index: int, text: str, reason: str) -> dict[str, Any]:
    """One answer, or more of it."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason or None}


async def whole_answer(
    deltas: AsyncGenerator[tuple[int, Delta], None], asked: Completion, beginning: dict[str, Any]
) -> dict[str, Any]:
    """The answer in one piece."""
    texts: list[list[str]] = [[asked.echoed[index // asked.count]] for index in range(asked.choices)]
    reasons, generated = [""] * asked.choices, 0
    async for index, delta in deltas:
        texts[index].append(delta.text)
        reasons[index] = delta.reason
        generated += delta.tokens
    listed = [choice(index, "".join(text), reasons[index]) for index, text in enumerate(texts)]
    return {**beginning, "choices": listed, "usage": asked.usage(generated)}


async def events(
    deltas: AsyncGenerator[tuple[int, Delta], None], asked: Completion, beginning: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as events, without the end mark."""
    generated, begun = 0, set[int]()
    more = {"usage": None} if asked.include_usage else {}
    async for index, delta in deltas:
        generated += delta.tokens
        text = delta.text if index in begun else asked.echoed[index // asked.count] + delta.text
        begun.add(index)
        if text or delta.reason:
            yield {**beginning, "choices": [choice(index, text, delta.reason)], **more}
    if asked.include_usage:
        yield {**beginning, "choices": [], "usage": asked.usage(generated)}
