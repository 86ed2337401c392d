"""Real workers on real sockets, killed and frozen while requests are on their way: every answer comes, and is right."""

import gc
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from tests.chaos.fleet import Fleet, left_over
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.targets.interface import Executable, LoadOptions

pytestmark = pytest.mark.slow

_PATIENCE_S = 40.0
_SETTINGS = SessionSettings(
    deadline_s=_PATIENCE_S,
    host=LoadOptions(threads=1),
    machine=SessionOptions(attempt_s=3.0, liveness=LivenessOptions(heartbeat_s=0.25, missed=4)),
)


def _ask(session: Session, count: int, at: int, then: Callable[[], None]) -> list[Future[Answer]]:
    """Ask `count` times, and do something when the answer to request number `at` comes."""
    happened = threading.Event()

    def act(_: Future[Answer]) -> None:
        then()
        happened.set()

    futures = []
    for number in range(count):
        future = session.submit(inputs_of(number, batch=1 + number % 3))
        if number == at:
            future.add_done_callback(act)
        futures.append(future)
    assert happened.wait(_PATIENCE_S)
    return futures


def _check(whole: Executable, futures: list[Future[Answer]]) -> set[str]:
    """Every answer is the unsplit model's, bit for bit; gives the plans that made them."""
    plans = set()
    for number, future in enumerate(futures):
        answer = future.result(_PATIENCE_S)
        wanted = whole.run(inputs_of(number, batch=1 + number % 3))
        assert answer.keys() == wanted.keys()
        assert all(np.array_equal(answer[name], array) for name, array in wanted.items()), f"request {number}"
        plans.add(answer.report.plan)
    return plans


def _until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def _nothing_left(before: tuple[set[str], int, set[int]]) -> None:
    """No thread, open file or process more than before; those of other tests may have gone since."""
    gc.collect()
    give_up = time.monotonic() + 3.0
    while not _is_as_before(before) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert _is_as_before(before), (left_over(), before)


def _is_as_before(before: tuple[set[str], int, set[int]]) -> bool:
    threads, files, processes = left_over()
    return threads <= before[0] and files <= before[1] and processes <= before[2]


@pytest.mark.parametrize(
    ("tiers", "count", "seed"),
    [(("edge",), 200, 1), (("cloud",), 200, 2), (("edge", "cloud"), 60, 3), (("cloud",), 40, 4), (("edge",), 40, 5)],
)
def test_kill_9(bundle: Bundle, fleet: Fleet, whole: Executable, tiers: tuple[str, ...], count: int, seed: int) -> None:
    before = left_over()
    with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
        assert session.run(inputs_of(0)).report.plan == "plan0"
        moment = random.Random(seed).randrange(count // 10, count * 2 // 3)
        plans = _check(whole, _ask(session, count, moment, lambda: fleet.kill(*tiers)))
        assert "plan0" in plans
        assert len(plans) > 1
        assert all(session.tiers[tier] != "up" for tier in tiers)
        assert not len(session._pending)
        assert not session._machine.flights
    _nothing_left(before)


def test_workers_that_come_back_are_used_again(bundle: Bundle, fleet: Fleet, whole: Executable) -> None:
    with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
        plans = _check(whole, _ask(session, 30, 10, lambda: fleet.kill("edge", "cloud")))
        assert "plan3" in plans
        fleet.revive()
        _until(lambda: set(session.tiers.values()) == {"up"})
        assert _check(whole, _ask(session, 10, 5, lambda: None)) == {"plan0"}


@pytest.mark.parametrize("tier", ["edge", "cloud"])
def test_a_frozen_worker_is_passed_by_and_used_again(
    bundle: Bundle, fleet: Fleet, whole: Executable, tier: str
) -> None:
    with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
        futures = _ask(session, 60, 20, lambda: fleet.signal(tier, signal.SIGSTOP))
        assert "plan0" in _check(whole, futures)
        assert session.tiers[tier] != "up"
        fleet.signal(tier, signal.SIGCONT)
        _until(lambda: session.tiers[tier] == "up")
        assert _check(whole, _ask(session, 10, 5, lambda: None)) == {"plan0"}


def test_nothing_is_left_of_workers_that_a_session_started(bundle: Bundle, whole: Executable) -> None:
    before = left_over()
    with flagsplit.connect(bundle, settings=_SETTINGS) as session:
        assert len(left_over()[2] - before[2]) == 2
        assert _check(whole, _ask(session, 5, 2, lambda: None)) == {"plan0"}
    _nothing_left(before)


def test_a_session_that_goes_away_leaves_the_workers_free(bundle: Bundle, fleet: Fleet, whole: Executable) -> None:
    for _ in range(3):
        with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
            for number in range(20):
                session.submit(inputs_of(number))
    with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
        assert _check(whole, _ask(session, 10, 5, lambda: None)) == {"plan0"}
