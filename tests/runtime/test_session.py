"""Sessions and workers as applications see them, over channels in memory; one over ZeroMQ and one with processes."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.bundles import TIERS, build_bundle, inputs_of

import flagsplit
from flagsplit.errors import ConfigError, FlagsplitError, InputError, PeerError, RefusedError, UnavailableError
from flagsplit.runtime.async_session import AsyncSession
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.runtime.worker import Worker
from flagsplit.targets.interface import Array, Executable, LoadOptions
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import NO_SECURITY
from flagsplit.transport.zeromq import ZmqChannel

SETTINGS = SessionSettings(deadline_s=20.0, connect_s=5.0, host=LoadOptions(threads=1))
ADDRESSES = {tier: PeerAddress(f"mem://{tier}") for tier in TIERS[1:]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return flagsplit.open(build_bundle(folder), cache=folder / "cache")


@pytest.fixture(scope="module")
def whole(bundle: Bundle) -> Iterator[Executable]:
    loaded = bundle.load_whole(LoadOptions(threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    give_up = time.monotonic() + 5
    while left := {t for t in set(threading.enumerate()) - before if not t.name.startswith("asyncio_")}:
        assert time.monotonic() < give_up, left
        time.sleep(0.01)


class Line:
    """A network in memory with its workers."""

    def __init__(self, bundle: Bundle, *tiers: str) -> None:
        self.bundle = bundle
        self.network = MemoryNetwork()
        self.workers = {tier: self.worker(tier) for tier in tiers}

    def worker(self, tier: str) -> Worker:
        return Worker(self.bundle, TIERS.index(tier), MemoryChannel(self.network), f"mem://{tier}")

    def session(self, settings: SessionSettings = SETTINGS, *tiers: str) -> Session:
        addresses = {tier: ADDRESSES[tier] for tier in tiers or tuple(self.workers)}
        return Session(self.bundle, addresses, MemoryChannel(self.network), settings)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.stop()
            assert worker.wait(5)


def right(whole: Executable, answer: Answer, number: int) -> bool:
    return np.array_equal(answer["y"], whole.run(inputs_of(number))["y"])


class Slow:
    """A segment that waits for a gate."""

    def __init__(self, real: Executable, gate: threading.Event) -> None:
        self._real, self._gate = real, gate
        self.inputs, self.outputs, self.close = real.inputs, real.outputs, real.close

    def run(self, tensors: dict[str, Array]) -> dict[str, Array]:
        self._gate.wait(10)
        return self._real.run(tensors)


@pytest.fixture
def gate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing runs on the phone until it is set."""
    real, event = bundle.load, threading.Event()
    monkeypatch.setattr(bundle, "load", lambda tier, *rest: Slow(real(tier, *rest), event))
    yield event
    event.set()


def test_answers_equal_the_unsplit_model_bit_for_bit(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        assert session.tiers == {"edge": "up", "cloud": "up"}
        answer = session.run(inputs_of(1))
        assert right(whole, answer, 1)
        assert answer.report.plan == "plan0"
        assert [tier.tier for tier in answer.report.tiers] == list(TIERS)
        for plan in ("plan1", "plan2", "plan3"):
            assert right(whole, again := session.run(inputs_of(2), plan=plan), 2)
            assert again.report.plan == plan
        empty = session.run(inputs_of(0, batch=0))
        assert empty["y"].shape == (0, 24)


def test_a_stream_keeps_its_order(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        for number, answer in enumerate(session.stream(inputs_of(n) for n in range(40))):
            assert right(whole, answer, number)
        stream = session.stream(inputs_of(n) for n in range(40))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert right(whole, session.run(inputs_of(7)), 7)


def test_without_workers_the_first_tier_does_it_alone(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), SETTINGS) as session:
        answer = session.run(inputs_of(3))
        assert right(whole, answer, 3)
        assert (answer.report.plan, answer.report.links) == ("plan3", ())


def test_an_absent_worker_is_told_and_used_when_it_comes(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge") as line, line.session(SETTINGS, "edge", "cloud") as session:
        assert session.tiers["cloud"].startswith("nothing listens")
        assert session.run(inputs_of(1)).report.plan == "plan2"
        line.workers["cloud"] = line.worker("cloud")
        give_up = time.monotonic() + 10
        while session.tiers["cloud"] != "up":
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert session.run(inputs_of(1)).report.plan == "plan0"
        assert any("cloud up" in event for event in session.events)


def test_a_worker_that_stops_says_goodbye(bundle: Bundle, whole: Executable) -> None:
    with Line(bundle, "edge", "cloud") as line, line.session() as session:
        line.workers["edge"].stop()
        line.workers["edge"].stop()
        assert line.workers["edge"].wait(0)
        assert right(whole, session.run(inputs_of(1)), 1)
        assert session.tiers["edge"] != "up"


def test_refusals_are_errors_at_the_start(bundle: Bundle, tmp_path: Path) -> None:
    other = flagsplit.open(build_bundle(tmp_path, plans=[{}]))
    with Line(other, "edge") as line, pytest.raises(RefusedError, match="use the same bundle"):
        Session(bundle, {"edge": ADDRESSES["edge"]}, MemoryChannel(line.network), SETTINGS)
    with Line(bundle, "edge") as line, pytest.raises(RefusedError, match="serves tier edge"):
        Session(bundle, {"cloud": ADDRESSES["edge"]}, MemoryChannel(line.network), SETTINGS)


@pytest.mark.parametrize(
    "workers", [{"phone": PeerAddress("mem://p")}, {"moon": PeerAddress("mem://m")}, {"edge": PeerAddress("nonsense")}]
)
def test_wrong_tiers_and_addresses_free_everything(bundle: Bundle, workers: dict[str, PeerAddress]) -> None:
    for channel in (MemoryChannel(MemoryNetwork()), ZmqChannel(security=NO_SECURITY)):
        with pytest.raises(FlagsplitError):
            Session(bundle, workers, channel, SETTINGS)


def test_a_taken_address_frees_everything(bundle: Bundle) -> None:
    with Line(bundle, "edge") as line, pytest.raises(ConfigError, match="taken"):
        line.worker("edge")


def test_wrong_requests_are_refused_before_they_are_sent(bundle: Bundle) -> None:
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), SETTINGS) as session:
        wrong: list[Callable[[], object]] = [
            lambda: session.submit({}),
            lambda: session.submit({"x": np.zeros((2, 24))}),
            lambda: session.submit(inputs_of(1), plan="nonsense"),
            lambda: session.submit(inputs_of(1), deadline_s=float("nan")),
        ]
        for ask in wrong:
            with pytest.raises(FlagsplitError):
                ask()
        assert not len(session._pending)


def test_a_deadline_that_cannot_be_kept(bundle: Bundle, gate: threading.Event) -> None:
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), SETTINGS) as session:
        for deadline_s in (0.0, -1.0, 0.05):
            with pytest.raises(UnavailableError):
                session.run(inputs_of(1), deadline_s=deadline_s)
        gate.set()
        assert session.run(inputs_of(1), deadline_s=float("inf")).report.attempts == 1


def test_a_request_that_is_cancelled_is_abandoned(bundle: Bundle, gate: threading.Event) -> None:
    window = SessionSettings(host=LoadOptions(threads=1), machine=SessionOptions(window=2))
    with Line(bundle) as line, Session(bundle, {}, MemoryChannel(line.network), window) as session:
        futures = [session.submit(inputs_of(n)) for n in range(6)]
        assert all(future.cancel() for future in futures[:5])
        gate.set()
        assert futures[5].result(10)["y"].shape == (2, 24)
        assert not len(session._pending)
        with pytest.raises(CancelledError):
            futures[0].result()


def test_closing_with_requests_under_way(bundle: Bundle, gate: threading.Event) -> None:
    with Line(bundle) as line:
        session = Session(bundle, {}, MemoryChannel(line.network), SETTINGS)
        futures = [session.submit(inputs_of(n)) for n in range(20)]
        threading.Timer(0.1, gate.set).start()
        session.close()
        session.close()
        for future in futures:
            error = future.exception(0)
            assert error is None or isinstance(error, PeerError)
        assert isinstance(futures[-1].exception(0), PeerError)
        with pytest.raises(PeerError, match="closed"):
            session.submit(inputs_of(1))


def test_a_closed_session_changes_no_policy(bundle: Bundle) -> None:
    with Line(bundle) as line:
        with line.session() as session:
            pass
        for change in (lambda: session.update_sla({}), lambda: session.swap(bundle), lambda: session.run(inputs_of(1))):
            started = time.monotonic()
            with pytest.raises(PeerError, match="the session is closed"):
                change()
            assert time.monotonic() - started < 5


def test_a_policy_that_waits_for_workers_hears_that_the_session_is_closed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Line(bundle) as line:
        session = line.session()
        monkeypatch.setattr(session._shell, "post", lambda _: threading.Timer(0.05, session.close).start())
        with pytest.raises(PeerError, match="the session is closed"):
            session.update_sla({}, timeout_s=30)


def test_what_is_called_with_an_answer_may_ask_and_cannot_wait(bundle: Bundle, whole: Executable) -> None:
    """It runs on the thread that brings all answers: waiting there would wait for ever."""
    few = replace(SETTINGS, max_pending=1)
    with Line(bundle, "cloud") as line, line.session() as session, line.session(few) as full:
        for asked in (session, full):
            said: list[object] = []
            done = threading.Event()

            def then(
                _: object, asked: Session = asked, said: list[object] = said, done: threading.Event = done
            ) -> None:
                for wait in (lambda: asked.run(inputs_of(2)), lambda: asked.update_sla({}), lambda: asked.swap(bundle)):
                    try:
                        wait()
                    except ConfigError as error:
                        said.append(error)
                said.append(asked.submit(inputs_of(3)))
                try:
                    said.append(full.submit(inputs_of(4)) if asked is full else None)
                except UnavailableError as error:
                    said.append(error)
                done.set()

            asked.submit(inputs_of(1)).add_done_callback(then)
            assert done.wait(10)
            *refused, future, beyond = said
            assert all("would wait for itself" in str(each) for each in refused)
            assert len(refused) == 3
            assert right(whole, future.result(10), 3)  # type: ignore[attr-defined]
            assert isinstance(beyond, UnavailableError if asked is full else type(None))
            assert right(whole, asked.run(inputs_of(5)), 5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own(bundle: Bundle, whole: Executable) -> None:
    """Its threads stay behind, so that nobody would answer it, nor tell it of a deadline."""
    with Line(bundle) as line, line.session() as session:
        session.run(inputs_of(1))
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                session.run(inputs_of(1))
            except PeerError as error:
                os._exit(7 if "forked" in str(error) else 8)
            os._exit(9)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert right(whole, session.run(inputs_of(2)), 2)


def test_a_segment_that_fails_on_the_input(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundle.load

    class Broken(Slow):
        def run(self, tensors: dict[str, Array]) -> dict[str, Array]:
            raise InputError("division by zero")

    monkeypatch.setattr(bundle, "load", lambda tier, *rest: Broken(real(tier, *rest), threading.Event()))
    with (
        Line(bundle, "edge", "cloud") as line,
        line.session() as session,
        pytest.raises(InputError, match="division by zero"),
    ):
        session.run(inputs_of(1))


def test_a_session_that_breaks_tells_all_who_wait(bundle: Bundle, gate: threading.Event) -> None:
    with Line(bundle) as line:
        session = Session(bundle, {}, MemoryChannel(line.network), SETTINGS)
        future = session.submit(inputs_of(1))
        session._shell.post("nonsense")  # type: ignore[arg-type]
        gate.set()
        with pytest.raises(FlagsplitError, match="cannot handle"):
            future.result(10)
        with pytest.raises(FlagsplitError, match="cannot handle"):
            session.submit(inputs_of(1))
        session.close()


def test_many_threads_share_a_session(bundle: Bundle, whole: Executable) -> None:
    wrong: list[int] = []
    with Line(bundle, "edge", "cloud") as line, line.session() as session:

        def ask(start: int) -> None:
            for number in range(start, start + 15):
                answer = session.run(inputs_of(number))
                if answer.report.plan != "plan0" or answer["y"].shape != (2, 24):
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


async def _numbers(count: int) -> AsyncIterator[dict[str, Array]]:
    for number in range(count):
        yield inputs_of(number)


def test_the_async_twin(bundle: Bundle, whole: Executable) -> None:
    async def main(session: Session) -> None:
        twin = AsyncSession(session)
        assert (twin.bundle, twin.tiers) == (bundle, session.tiers)
        answers = await asyncio.gather(*(twin.run(inputs_of(number)) for number in range(20)))
        assert all(right(whole, answer, number) for number, answer in enumerate(answers))
        streamed = [answer async for answer in twin.stream(_numbers(20), window=3)]
        assert all(right(whole, answer, number) for number, answer in enumerate(streamed))
        with pytest.raises(InputError):
            await twin.run({})
        await twin.close()
        with pytest.raises(PeerError):
            await twin.run(inputs_of(1))

    with Line(bundle, "edge", "cloud") as line:
        asyncio.run(main(line.session()))


def test_a_cancelled_task_abandons_its_request(bundle: Bundle, gate: threading.Event) -> None:
    async def main(session: Session) -> None:
        twin = AsyncSession(session)
        task = asyncio.create_task(twin.run(inputs_of(1)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = twin.stream(_numbers(20))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not len(session._pending)
        gate.set()
        assert (await twin.run(inputs_of(2)))["y"].shape == (2, 24)
        await twin.close()

    with Line(bundle) as line:
        asyncio.run(main(Session(bundle, {}, MemoryChannel(line.network), SETTINGS)))


@pytest.mark.slow
def test_connect_async_over_zeromq(bundle: Bundle, whole: Executable) -> None:
    async def main() -> None:
        async with flagsplit.connect_async(bundle, {}, settings=SETTINGS) as session:
            assert right(whole, await session.run(inputs_of(1)), 1)

    asyncio.run(main())
    with flagsplit.connect(bundle, {}, settings=SETTINGS) as session:
        session.close()
        with pytest.raises(PeerError):
            session.run(inputs_of(1))


@pytest.mark.slow
def test_a_bad_address_in_a_hello_does_not_hurt_a_worker(bundle: Bundle, whole: Executable) -> None:
    worker = Worker(bundle, 1, ZmqChannel(security=NO_SECURITY), "tcp://127.0.0.1:0")
    try:
        addresses = {"edge": PeerAddress(worker.address), "cloud": PeerAddress("tcp://127.0.0.1:1", "x" * 40)}
        with Session(bundle, addresses, ZmqChannel(security=NO_SECURITY), SETTINGS) as session:
            session._machine._workers["cloud"].address = PeerAddress("nonsense")
            session._shell.post(flagsplit.transport.channel.Up("edge"))
            for number in range(5):
                assert right(whole, session.run(inputs_of(number), plan="plan2"), number)
        assert not worker.wait(0)
    finally:
        worker.stop()


def test_answers_of_slowed_tiers_say_that_they_are_emulated(bundle: Bundle, whole: Executable) -> None:
    for settings, basis in (
        (SETTINGS, "measured"),
        (replace(SETTINGS, slowdown=2.0), "emulated"),
        (replace(SETTINGS, emulated=True), "emulated"),
    ):
        with Line(bundle, "edge", "cloud") as line, line.session(settings) as session:
            answer = session.run(inputs_of(1))
            assert right(whole, answer, 1)
            assert answer.report.basis == answer.report.to_data()["basis"] == basis
