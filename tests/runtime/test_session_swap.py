"""Sessions that change their bundle or policy, that are asked too much, and whose answers come as they are ready."""

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.bundles import TIERS, build_bundle, inputs_of
from tests.runtime.test_session import ADDRESSES, SETTINGS, Line, right

import flagsplit
from flagsplit.errors import (
    BundleError,
    ConfigError,
    InputError,
    PeerError,
    PolicyError,
    RefusedError,
    UnavailableError,
)
from flagsplit.runtime.async_session import AsyncSession
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session
from flagsplit.splitter.sla import SLA, Objective
from flagsplit.targets.interface import Array, Executable, LoadOptions
from flagsplit.transport.memory import MemoryChannel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return flagsplit.open(build_bundle(folder), cache=folder / "cache")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model, and only the plan for the first tier alone."""
    folder = tmp_path_factory.mktemp("other")
    return flagsplit.open(build_bundle(folder, plans=[{}]), cache=folder / "cache")


@pytest.fixture(scope="module")
def whole(bundle: Bundle) -> Iterator[Executable]:
    loaded = bundle.load_whole(LoadOptions(threads=1))
    yield loaded
    loaded.close()


def _keep_asking(session: Session, whole: Executable, over: threading.Event) -> "Future[list[Answer]]":
    """Ask one after the other until told to stop; every answer is checked."""
    done: Future[list[Answer]] = Future()

    def ask() -> None:
        answers: list[Answer] = []
        try:
            while not over.is_set():
                number = len(answers)
                answers.append(session.run(inputs_of(number), deadline_s=10.0))
                assert right(whole, answers[-1], number)
            done.set_result(answers)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to see it
            done.set_exception(error)

    threading.Thread(target=ask).start()
    return done


def test_another_policy_is_picked_from_the_pool_under_load(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        over = threading.Event()
        asking = [_keep_asking(session, whole, over) for _ in range(3)]
        time.sleep(0.2)
        assert session.update_sla({"forbid_tiers": ["edge"], "use_tiers": ["cloud"]}) == "picked"
        assert session.run(inputs_of(1)).report.plan == "plan1"
        assert session.update_sla(SLA(mode="only_on_device")) == "picked"
        assert session.run(inputs_of(1)).report.plan == "plan3"
        time.sleep(0.5)
        over.set()
        reports = [answer.report for future in asking for answer in future.result(10)]
        assert {report.plan for report in reports} >= {"plan0", "plan3"}
        assert session.epoch == 2
        epochs = [answer.report.epoch for answer in asking[0].result()]
        assert epochs == sorted(epochs)


def test_a_policy_out_of_reach_says_why_or_is_built(bundle: Bundle, other: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line:
        with line.session() as session, pytest.raises(PolicyError, match=r"keep_on.*build again"):
            session.update_sla({"keep_on": {"inputs": "phone"}})
        asked: list[SLA] = []

        def rebuild(_: Bundle, sla: SLA) -> Bundle:
            asked.append(sla)
            return other

        channel = MemoryChannel(line.network)
        with Session(bundle, ADDRESSES, channel, SETTINGS, rebuild) as session:
            assert session.update_sla({"keep_on": {"inputs": "phone"}}) == "rebuilt"
            assert asked == [SLA(keep_on={"inputs": "phone"})]
            assert right(whole, session.run(inputs_of(3)), 3)
            assert session.bundle is other


def test_a_looser_policy_is_built_and_a_worker_that_refuses_leaves_it_to_the_pool(
    bundle: Bundle, other: Bundle, whole: Executable
) -> None:
    asked: list[SLA] = []
    refuses = False

    def rebuild(_: Bundle, sla: SLA) -> Bundle:
        asked.append(sla)
        if refuses:
            raise RefusedError("no rights")
        return other

    wish = SLA(objective=Objective(energy=1.0))
    tight = copy.copy(bundle)
    tight.facts = bundle.facts.model_copy(update={"sla": {"forbid_tiers": ["edge"]}})
    with Line(bundle, "edge", "cloud") as line:
        with Session(tight, ADDRESSES, MemoryChannel(line.network), SETTINGS, rebuild) as session:
            assert session.update_sla({"forbid_tiers": ["edge", "cloud"]}) == "picked"
            assert asked == []
            assert session.update_sla({}) == "rebuilt"
            assert asked == [SLA()]
            assert session.bundle is other
        refuses = True
        with Session(bundle, ADDRESSES, MemoryChannel(line.network), SETTINGS, rebuild) as session:
            assert session.update_sla(wish) == "picked"
            assert asked[1:] == [wish]
            assert session.bundle is bundle
            assert any("objective" in event and "no rights" in event for event in session.events)
            assert right(whole, session.run(inputs_of(3)), 3)
        with line.session() as session:
            assert session.update_sla(wish) == "picked", "it cannot build"


def test_another_bundle_is_swapped_in_under_load(bundle: Bundle, other: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        over = threading.Event()
        asking = _keep_asking(session, whole, over)
        time.sleep(0.2)
        assert session.swap(other) == ("edge", "cloud"), "its workers do not serve it"
        assert session.bundle is other
        assert session.run(inputs_of(2)).report.epoch == 1
        time.sleep(0.5)
        over.set()
        assert {answer.report.epoch for answer in asking.result(10)} == {0, 1}
        give_up = time.monotonic() + 5
        while set(session._held) != {other.digest}:
            assert time.monotonic() < give_up, "the old bundle is let go"
            time.sleep(0.01)
        assert session.tiers == {"edge": "up", "cloud": "up"}, "workers stay connected"


def test_a_bundle_for_other_inputs_or_that_cannot_be_loaded_changes_nothing(
    bundle: Bundle, other: Bundle, whole: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        halved = other.inputs[0].model_copy(update={"dtype": "float16"})
        strange = copy.copy(other)
        strange.__class__ = type("Strange", (Bundle,), {"inputs": (halved,)})
        with pytest.raises(ConfigError, match="inputs"):
            session.swap(strange)

        def broken(*_: object) -> Executable:
            raise BundleError("a segment is damaged")

        monkeypatch.setattr(other, "load", broken)
        with pytest.raises(BundleError, match="damaged"):
            session.swap(other)
        assert session.epoch == 0
        assert right(whole, session.run(inputs_of(1)), 1)


class _Gated:
    """A segment that waits for its turn."""

    def __init__(self, real: Executable, gate: threading.Semaphore) -> None:
        self._real, self._gate = real, gate
        self.inputs, self.outputs, self.close = real.inputs, real.outputs, real.close

    def run(self, tensors: dict[str, Array]) -> dict[str, Array]:
        self._gate.acquire(timeout=10)
        return self._real.run(tensors)


@pytest.fixture
def gate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    real, found = bundle.load, threading.Semaphore(0)
    monkeypatch.setattr(bundle, "load", lambda tier, *rest: _Gated(real(tier, *rest), found))
    yield found
    found.release(1000)


def test_who_asks_too_much_waits_and_is_told_at_the_deadline(bundle: Bundle, gate: threading.Semaphore) -> None:
    settings = replace(SETTINGS, max_pending=3)
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), settings) as session:
        futures = [session.submit(inputs_of(n)) for n in range(3)]
        assert len(session._pending) == 3
        with pytest.raises(UnavailableError, match="max_pending"):
            session.submit(inputs_of(3), deadline_s=0.1)
        timer = threading.Timer(0.1, gate.release)
        timer.start()
        futures.append(session.submit(inputs_of(3), deadline_s=10))
        timer.join()
        assert futures[0].done()
        assert futures[1].cancel()
        assert len(session._pending) == 2
        gate.release(5)
        assert futures[3].result(10)


def test_closing_frees_who_waits_for_room(bundle: Bundle, gate: threading.Semaphore) -> None:
    settings = replace(SETTINGS, max_pending=1)
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), settings) as session:
        first = session.submit(inputs_of(1))
        failed: list[Exception] = []

        def ask() -> None:
            try:
                session.submit(inputs_of(2))
            except PeerError as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.05)
        gate.release(2)
        session.close()
        thread.join(5)
        assert failed or first.done()
        assert not thread.is_alive()


@pytest.mark.parametrize("ordered", [True, False])
def test_streams_give_every_answer_once(bundle: Bundle, whole: Executable, ordered: bool) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        answers = list(session.stream((inputs_of(n) for n in range(30)), ordered=ordered, window=5))
        wanted = [whole.run(inputs_of(n))["y"] for n in range(30)]
        found = [next(i for i, y in enumerate(wanted) if np.array_equal(y, answer["y"])) for answer in answers]
        assert sorted(found) == list(range(30))
        assert found == list(range(30)) or not ordered


@pytest.mark.parametrize("ordered", [True, False])
def test_a_live_stream_gives_answers_before_the_next_request_comes(
    bundle: Bundle, whole: Executable, ordered: bool
) -> None:
    async def ask(session: Session) -> int:
        twin, answered = AsyncSession(session), asyncio.Event()
        seen = 0

        async def frames() -> AsyncIterator[dict[str, Array]]:
            for number in range(5):
                yield inputs_of(number)
                await asyncio.wait_for(answered.wait(), 10)
                answered.clear()

        async for answer in twin.stream(frames(), ordered=ordered, window=4):
            assert right(whole, answer, seen)
            seen += 1
            answered.set()
        return seen

    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        assert asyncio.run(ask(session)) == 5


def test_an_async_caller_is_held_back_without_holding_up_its_loop(bundle: Bundle, gate: threading.Semaphore) -> None:
    async def ask(session: Session) -> list[Answer]:
        twin = AsyncSession(session)
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1
                if beats > 5:
                    gate.release()

        heart = asyncio.ensure_future(beat())
        try:
            return list(await asyncio.gather(*(twin.run(inputs_of(n), deadline_s=10) for n in range(12))))
        finally:
            heart.cancel()

    settings = replace(SETTINGS, max_pending=2)
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), settings) as session:
        assert len(asyncio.run(ask(session))) == 12


def test_a_trace_is_checked_and_travels(bundle: Bundle) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert session.run(inputs_of(1), traceparent=trace)
        with pytest.raises(InputError, match="traceparent"):
            session.submit(inputs_of(1), traceparent="mine")
    assert len(TIERS) == 3
