"""A session among workers that lie, flood, fall silent, or answer what nobody asked: its answers are right."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.chaos.hostile import HostileWorker, chunk
from tests.chaos.served import ALONE, BY_CLOUD, SETTINGS, Oracle, until
from tests.runtime.bundles import PLANS, build_bundle, inputs_of

import flagsplit
from flagsplit.errors import RefusedError
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.targets.interface import LoadOptions
from flagsplit.transport.messages import (
    Bye,
    Cancel,
    Done,
    Drain,
    Failed,
    Have,
    Hop,
    Message,
    Open,
    Pong,
    Reject,
    TensorHeader,
    Welcome,
)
from flagsplit.transport.security import NO_SECURITY, KeyStore

pytestmark = pytest.mark.slow

_HASTY = replace(SETTINGS, machine=SessionOptions(attempt_s=0.4, liveness=LivenessOptions(heartbeat_s=0.25, missed=6)))
_Behavior = Callable[[HostileWorker, Message], None]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyStore, "security", lambda _: NO_SECURITY)


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def _ask(oracle: Oracle, worker: HostileWorker, count: int = 3) -> set[str]:
    """The plans that gave the answers, which are right."""
    plans = set()
    with flagsplit.connect(oracle.bundle, {"cloud": worker.address}, settings=_HASTY) as session:
        for number in range(count):
            answer = session.run(inputs_of(number, 64))
            oracle.check(answer, number, 64)
            plans.add(answer.report.plan)
    return plans


@pytest.mark.parametrize("lie", [{"tier": "edge"}, {"bundle": "sha256:0"}])
def test_a_worker_that_serves_something_else(oracle: Oracle, lie: dict[str, str]) -> None:
    with HostileWorker(oracle.bundle, welcome=lie) as worker, pytest.raises(RefusedError):
        _ask(oracle, worker)


def test_a_worker_that_never_answers(oracle: Oracle) -> None:
    with HostileWorker(oracle.bundle) as worker:
        assert _ask(oracle, worker) == {ALONE}


def test_a_worker_that_is_silent_from_the_first(oracle: Oracle) -> None:
    """It accepts connections and says nothing at all."""
    with HostileWorker(oracle.bundle) as worker:
        worker.mute = True
        settings = replace(_HASTY, connect_s=0.5)
        with flagsplit.connect(oracle.bundle, {"cloud": worker.address}, settings=settings) as session:
            oracle.check(session.run(inputs_of(1)), 1)


def _answering(change: Callable[[list[Any]], list[Any]]) -> _Behavior:
    def behave(worker: HostileWorker, message: Message) -> None:
        question = worker.question(message)
        if question is not None:
            worker.say(*change(worker.answer(*question)))

    return behave


def _with(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda said: [replace(said[0], **changes), *said[1:]]


def _announcing(dtype: str, *shape: int) -> Callable[[list[Any]], list[Any]]:
    """The same bytes, or zeros, under another header."""

    def change(said: list[Any]) -> list[Any]:
        size_bytes = int(np.prod(shape)) * {"float32": 4, "int32": 4, "bool": 1, "float64": 8}[dtype]
        header = TensorHeader(said[0].tensors[0].name, dtype, shape, size_bytes)
        opened = replace(said[0], tensors=(header,))
        return [opened, chunk(opened, bytes(said[1].payload)[:size_bytes].ljust(min(size_bytes, 1 << 20), b"\0"))]

    return change


_LIES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "another hop": _with(hop=1),
    "the first hop": _with(hop=0),
    "another route": _with(route=(Hop("phone", "", ("a",)), Hop("cloud", "", ("c",)), Hop("phone"))),
    "no tensors": _with(tensors=()),
    "no timings": _with(trace=()),
    "a wrong checksum": lambda said: [said[0], replace(said[1], crc32=said[1].crc32 ^ 1)],
    "bytes beyond the end": lambda said: [said[0], replace(said[1], offset=4096)],
    "bytes that are no zstd": lambda said: [said[0], replace(said[1], squeeze="zstd", raw_bytes=6144)],
    "a tensor too large": _announcing("bool", 1 << 29),
    "a vast tensor that never comes": _announcing("bool", 1 << 28),
    "half of it": lambda said: [said[0], replace(said[1], payload=said[1].payload[:1000])],
    "another width": _announcing("float32", 64, 12),
    "another batch": _announcing("float32", 32, 24),
    "another dtype": _announcing("int32", 64, 24),
    "a wider dtype": _announcing("float64", 64, 12),
    "more dimensions": _announcing("float32", 1, 64, 24),
}


@pytest.mark.parametrize("lie", _LIES)
def test_an_answer_that_lies(oracle: Oracle, lie: str) -> None:
    before_mb = _rss_mb()
    with HostileWorker(oracle.bundle, _answering(_LIES[lie])) as worker:
        assert _ask(oracle, worker, 2) == {ALONE}
    assert _rss_mb() < before_mb + 100


@pytest.fixture(scope="module")
def outputs_by_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """A bundle whose first plan has the cloud make the graph outputs themselves: nothing is computed from them."""
    folder = tmp_path_factory.mktemp("whole")
    plans = (dict.fromkeys(PLANS[0], "cloud"), PLANS[-1])
    bundle = flagsplit.open(build_bundle(folder, plans), cache=folder / "cache")
    whole = bundle.load_whole(LoadOptions(threads=1))
    yield Oracle(bundle, whole)
    whole.close()


@pytest.mark.parametrize("lie", ["another width", "another dtype", "a wider dtype", "more dimensions"])
def test_outputs_that_are_not_what_the_bundle_declares(outputs_by_cloud: Oracle, lie: str) -> None:
    with HostileWorker(outputs_by_cloud.bundle, _answering(_LIES[lie])) as worker:
        assert _ask(outputs_by_cloud, worker, 2) == {"plan1"}


def test_outputs_that_are(outputs_by_cloud: Oracle) -> None:
    with HostileWorker(outputs_by_cloud.bundle, _answering(lambda said: said)) as worker:
        assert _ask(outputs_by_cloud, worker, 2) == {"plan0"}


def test_answers_twice_and_late(oracle: Oracle) -> None:
    """Each answer comes again, at once and with every later one."""
    said: list[Message] = []

    def again(answer: list[Any]) -> list[Any]:
        said.extend(answer)
        return [*answer, *answer, *said]

    with HostileWorker(oracle.bundle, _answering(again)) as worker:
        assert _ask(oracle, worker, 10) == {BY_CLOUD}


def test_answers_of_older_attempts(oracle: Oracle) -> None:
    """The first attempt is answered only when the session has long gone on alone."""
    kept: list[Any] = []

    def late(answer: list[Any]) -> list[Any]:
        kept.append(answer)
        return kept[-2] if len(kept) > 1 else []

    with HostileWorker(oracle.bundle, _answering(late)) as worker:
        assert _ask(oracle, worker, 4) == {ALONE}


def _sid_floods(worker: HostileWorker) -> dict[str, list[Message]]:
    sid = worker.session
    route = (Hop("phone", "", ("a",)), Hop("cloud", "", ("c",)), Hop("phone"))
    tensors = (TensorHeader("c", "bool", (1 << 20,), 1 << 20),)
    zeros = bytes(1 << 18)
    unasked = [Open(sid, rid, 1, 0, "plan1", 2, route, tensors, 1000, ()) for rid in range(1000, 1400)]
    return {
        "Pong": [Pong(seq, 0, (1 << 53) - 1, 0, (1 << 53) - 1, (1 << 53) - 1) for seq in range(5000)],
        "Failed": [Failed(sid, rid, 1, "cloud", "busy", "x" * 1000, retryable=True) for rid in range(100, 5100)],
        "Opens that nobody asked for": [m for opened in unasked for m in (opened, chunk(opened, zeros))],
        "Have": [Have(sid, rid % 7, 1, 1, (1 << 40,)) for rid in range(5000)],
        "Cancel and Done": [m for rid in range(2500) for m in (Cancel(sid, rid % 3, 1), Done(sid, rid % 3))],
        "Welcome": [Welcome((1, 1), "0" * 32, 0, worker.bundle.digest, "cloud", 0, 1)] * 3000,
    }


@pytest.mark.parametrize(
    "kind", ["Pong", "Failed", "Opens that nobody asked for", "Have", "Cancel and Done", "Welcome"]
)
def test_floods(oracle: Oracle, kind: str) -> None:
    def behave(worker: HostileWorker, message: Message) -> None:
        question = worker.question(message)
        if question is not None:
            worker.say(*_sid_floods(worker)[kind], *worker.answer(*question))

    before_mb = _rss_mb()
    with HostileWorker(oracle.bundle, behave) as worker:
        assert _ask(oracle, worker, 3) <= {BY_CLOUD, ALONE}
    assert _rss_mb() < before_mb + 100


@pytest.mark.parametrize("tier", ["cloud", "edge", "phone", "moon"])
@pytest.mark.parametrize("code", ["unreachable", "busy", "compute", "protocol", "x"])
def test_a_worker_that_says_of_all_that_it_failed(oracle: Oracle, tier: str, code: str) -> None:
    def behave(worker: HostileWorker, message: Message) -> None:
        if isinstance(message, Open):
            worker.say(Failed(message.sid, message.rid, message.attempt, tier, code, "no", retryable=True))

    with HostileWorker(oracle.bundle, behave) as worker:
        assert _ask(oracle, worker, 2) == {ALONE}


@pytest.mark.parametrize("word", [Bye(), Drain(), Reject("draining"), Reject("version")])
def test_a_worker_that_leaves_at_each_question(oracle: Oracle, word: Message) -> None:
    def behave(worker: HostileWorker, message: Message) -> None:
        if isinstance(message, Open):
            worker.say(word)

    with HostileWorker(oracle.bundle, behave) as worker:
        assert _ask(oracle, worker) == {ALONE}


def test_it_makes_up_for_it(oracle: Oracle) -> None:
    """Lies count against a request, not for ever."""
    lies = [4]

    def sometimes(said: list[Any]) -> list[Any]:
        lies[0] -= 1
        return _LIES["a wrong checksum"](said) if lies[0] >= 0 else said

    with (
        HostileWorker(oracle.bundle, _answering(sometimes)) as worker,
        flagsplit.connect(oracle.bundle, {"cloud": worker.address}, settings=_HASTY) as session,
    ):
        for number in range(8):
            oracle.check(session.run(inputs_of(number)), number)
        until(lambda: session.run(inputs_of(1)).report.plan == BY_CLOUD, "the worker to be used again")
