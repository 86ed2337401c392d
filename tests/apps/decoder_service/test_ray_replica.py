"""One replica: what it makes of calls, and what these say of a stream."""

import asyncio
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.apps.decoder_service.ray_streams import FACTS

from flagsplit.apps.decoder_service.ray_replica import DecoderReplica, event_of, message_of, request_of
from flagsplit.errors import InternalError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate, Tokens
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.testing import HashModel, hidden, tiny_facts


def test_rows_wait_at_their_replica_for_the_next_ones() -> None:
    """A call ends with the token that the rows give; the cache stays for the next call of that id."""
    facts = tiny_facts(kind="decoder-only", input="text", prompt=(), max_positions=64)

    async def scenario() -> list[Any]:
        replica = DecoderReplica(partial(HashModel, 2, facts, stop_share=0), SchedulerSettings())
        found = []
        for position, kept in ((0, True), (3, True), (9, False)):
            rows = np.full((3, facts.width), position, np.float32)
            request = Generate(
                "r", "c", None, (5, 6, 7), 0, GenerationOptions(max_tokens=9), rows=rows, position=position
            )
            said = [item async for item in replica.generate(message_of(request, time.monotonic()))]
            found.append(said[-1]["events"][-1])
            assert ("code" in found[-1]) is not kept
        await replica.forget("r")
        await asyncio.to_thread(replica.stop)
        return found

    first, second, third = asyncio.run(scenario())
    assert len(first["tokens"]) == len(second["tokens"]) == 1
    assert third["code"] == "no-state"


def test_a_replica_that_breaks_says_so() -> None:
    model = partial(HashModel, 2, FACTS, fails=lambda _: True)
    replica = DecoderReplica(model, SchedulerSettings())

    async def scenario() -> None:
        await replica.check_health()
        for number in range(4):
            request = Generate(str(number), "c", hidden(number))
            assert [item async for item in replica.generate(message_of(request, time.monotonic()))]
        with pytest.raises(InternalError, match="fails again and again"):
            await replica.check_health()
        await asyncio.to_thread(replica.stop)

    asyncio.run(scenario())


def test_messages_keep_what_a_stream_is() -> None:
    request = Generate("a", "c", hidden(3), (1, 2, 3), 1, GenerationOptions(7, 0.5, stop=(4,)), time.monotonic() + 9)
    found = request_of(message_of(request, time.monotonic()))
    assert abs(found.deadline - request.deadline) < 1
    assert (found.tokens, found.generated, found.options) == (request.tokens, 1, request.options)
    assert found.context is not None
    assert list(found.context) == ["hidden"]
    event = Tokens("a", 3, (5,), True, "stop", logprobs=(-0.5, -0.25), no_speech=0.125)
    plain = asdict(event)
    assert event_of({**plain, "logprobs": list(event.logprobs)}) == event
    del plain["logprobs"]
    assert event_of(plain) == replace(event, logprobs=())
