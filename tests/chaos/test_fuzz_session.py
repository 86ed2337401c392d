"""Thousands of messages at random from a worker to its session: every answer is right, and memory is bounded."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.chaos.fuzz import Fuzzer
from tests.chaos.hostile import HostileWorker
from tests.chaos.served import SETTINGS, Oracle
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.transport.messages import Hello, Message, Welcome
from flagsplit.transport.security import NO_SECURITY, KeyStore

pytestmark = pytest.mark.slow

_MESSAGES = 4000
_WELCOME = Welcome((1, 1), "0" * 32, 0, "", "cloud", 0, 1)
_HASTY = replace(SETTINGS, machine=SessionOptions(attempt_s=0.3, liveness=LivenessOptions(heartbeat_s=0.25, missed=6)))


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


class _Babbler:
    """Says what comes to its mind before it answers, and breaks the protocol now and then."""

    def __init__(self, oracle: Oracle) -> None:
        self.said = 0
        self._rng = random.Random(1)
        self._bundle = oracle.bundle

    def __call__(self, worker: HostileWorker, message: Message) -> None:
        question = worker.question(message)
        if question is None:
            return
        opened, tensors = question
        answer = worker.answer(opened, tensors)
        names = (self._bundle.digest, worker.address)
        # Bytes of the right length would be an answer, and a wrong one: nobody could tell.
        fuzzer = Fuzzer(self._rng, answer[0], names)  # type: ignore[arg-type]
        fuzzer.rids = (opened.rid, opened.rid, opened.rid + 1, opened.rid - 1)
        for _ in range(self._rng.randrange(100)):
            message = fuzzer.message()
            if not isinstance(message, Hello | Welcome):  # the channel would put its own features on top
                worker.say(message)
                self.said += 1
        if self._rng.random() < 0.2:
            worker.say(replace(_WELCOME, bundle=self._bundle.digest, max_tensor_bytes=self._rng.randrange(2)))
        if self._rng.random() < 0.05:
            worker.say_frames(*fuzzer.broken())
        worker.say(*answer)


def test_thousands_of_messages(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyStore, "security", lambda _: NO_SECURITY)
    babbler = _Babbler(oracle)
    before_mb, number, sessions = _rss_mb(), 0, 0
    with HostileWorker(oracle.bundle, babbler) as worker:
        while babbler.said < _MESSAGES:
            # A session that was told to go away stays away: it takes another to be told more.
            with flagsplit.connect(oracle.bundle, {"cloud": worker.address}, settings=_HASTY) as session:
                sessions += 1
                assert sessions < _MESSAGES // 5
                for _ in range(10):
                    oracle.check(session.run(inputs_of(number, 64)), number, 64)
                    number += 1
                assert not session._machine.flights
    assert _rss_mb() < before_mb + 100
