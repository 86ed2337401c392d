"""Links that stall, break, end and corrupt, and the one that is merely slow: the answer is right, the worker stays."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.chaos.served import ALONE, BY_CLOUD, LARGE, SETTINGS, Oracle, Served, until
from tests.runtime.bundles import inputs_of

import flagsplit
from flagsplit.runtime.session import Answer, Session
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.transport.emulation import LinkShape, ShapingProxy

pytestmark = pytest.mark.slow

_FREE = LinkShape(float("inf"))
# Two megabytes take a quarter of a second.
_BROAD = LinkShape(8e6)


@contextmanager
def _through(
    oracle: Oracle, cloud: Served, shape: LinkShape = _FREE, attempt_s: float = 4.0
) -> Iterator[tuple[ShapingProxy, Session]]:
    """A session whose way to the worker is an emulated link."""
    machine: SessionOptions = replace(SETTINGS.machine, attempt_s=attempt_s)
    settings = replace(SETTINGS, machine=machine)
    with (
        ShapingProxy("127.0.0.1", cloud.port, shape) as link,
        flagsplit.connect(oracle.bundle, {"cloud": link.address}, settings=settings) as session,
    ):
        oracle.check_recovers(session)
        yield link, session


def _amid(link: ShapingProxy, session: Session, size_bytes: int = 600_000) -> Future[Answer]:
    """A question whose tensor is partly across."""
    start_bytes = link.carried_bytes[0]
    future = session.submit(inputs_of(1, LARGE))
    until(lambda: link.carried_bytes[0] > start_bytes + size_bytes, "a part of the tensor to cross")
    return future


def test_a_stopped_worker(oracle: Oracle, cloud: Served) -> None:
    with _through(oracle, cloud, _BROAD) as (link, session):
        future = _amid(link, session)
        cloud.process.send_signal(signal.SIGSTOP)
        answer = future.result()
        oracle.check(answer, 1, LARGE)
        assert answer.report.plan == ALONE
        cloud.revive()
        oracle.check_recovers(session)


@pytest.mark.parametrize("moment", ["idle", "amid chunks"])
def test_a_black_hole(oracle: Oracle, cloud: Served, moment: str) -> None:
    with _through(oracle, cloud, _BROAD) as (link, session):
        future = _amid(link, session) if moment == "amid chunks" else None
        link.partition()
        if future is not None:
            oracle.check(future.result(), 1, LARGE)
            assert future.result().report.plan == ALONE
        until(lambda: session.tiers["cloud"] != "up", "the silence to be noticed", 10)
        link.heal()
        oracle.check_recovers(session)


def test_a_black_hole_from_the_first(oracle: Oracle, cloud: Served) -> None:
    """Nothing answers while it connects; the session starts without, and finds the worker later."""
    settings = replace(SETTINGS, connect_s=0.5)
    with ShapingProxy("127.0.0.1", cloud.port, _FREE) as link:
        link.partition()
        with flagsplit.connect(oracle.bundle, {"cloud": link.address}, settings=settings) as session:
            answer = session.run(inputs_of(1))
            oracle.check(answer, 1)
            assert answer.report.plan == ALONE
            link.heal()
            oracle.check_recovers(session)


@pytest.mark.parametrize("fault", ["reset", "half-close up", "half-close down", "half-close both"])
def test_a_broken_connection(oracle: Oracle, cloud: Served, fault: str) -> None:
    with _through(oracle, cloud, _BROAD) as (link, session):
        future = _amid(link, session)
        if fault == "reset":
            link.cut()
        else:
            link.half_close(fault.split()[1])  # type: ignore[arg-type]
        oracle.check(future.result(), 1, LARGE)
        oracle.check_recovers(session)
    oracle.check_serves(cloud)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("at_bytes", [0, 70, 1_000_000])
def test_cut_at_a_byte(oracle: Oracle, cloud: Served, way: str, at_bytes: int) -> None:
    with _through(oracle, cloud) as (link, session):
        link.cut_after(at_bytes, way)  # type: ignore[arg-type]
        oracle.check(session.run(inputs_of(1, LARGE)), 1, LARGE)
        oracle.check_recovers(session)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("at_bytes", [3, 20, 150, 1_000, 300_000])
@pytest.mark.parametrize("curve", ["CURVE", "plain"])
def test_a_corrupt_byte(oracle: Oracle, request: pytest.FixtureRequest, curve: str, at_bytes: int, way: str) -> None:
    """In a header, a length, a frame or a tensor: whatever it spoils, no answer is made of it."""
    served: Served = request.getfixturevalue("cloud" if curve == "CURVE" else "plain_cloud")
    process_id = served.process.pid
    with _through(oracle, served, attempt_s=1.0) as (link, session):
        link.corrupt(at_bytes, way)  # type: ignore[arg-type]
        oracle.check(session.run(inputs_of(1, LARGE)), 1, LARGE)
        until(lambda: session.run(inputs_of(1)).report.plan == BY_CLOUD, "the worker to be used again")
    oracle.check_serves(served)
    served.check_alive(process_id)


def test_a_large_tensor_on_a_narrow_link_is_no_silence(oracle: Oracle, cloud: Served) -> None:
    """Two megabytes each way take two seconds each way, and heartbeats of a quarter second wait for no chunk."""
    with _through(oracle, cloud, LinkShape(1e6), attempt_s=30.0) as (_, session):
        answer = session.run(inputs_of(3, LARGE), plan=BY_CLOUD)
        oracle.check(answer, 3, LARGE)
        assert (answer.report.plan, answer.report.attempts) == (BY_CLOUD, 1)
        assert session.tiers["cloud"] == "up"


def test_a_slow_consumer_does_not_swell_the_worker(oracle: Oracle, cloud: Served) -> None:
    """Sixteen answers of two megabytes for a session that hardly reads."""
    with _through(oracle, cloud, attempt_s=1.0) as (link, session):
        oracle.check(session.run(inputs_of(1, LARGE)), 1, LARGE)
        rss_mb = cloud.rss_mb
        link.set_shapes(_FREE, LinkShape(1e5))
        futures = [session.submit(inputs_of(number, LARGE)) for number in range(16)]
        highest_mb = 0.0
        while not all(future.done() for future in futures):
            highest_mb = max(highest_mb, cloud.rss_mb)
            time.sleep(0.02)
        for number, future in enumerate(futures):
            oracle.check(future.result(), number, LARGE)
        # Eight requests at a time, each with its tensor and its answer, and what the engine needs meanwhile.
        assert highest_mb < rss_mb + 80
        link.set_shapes(_FREE)
        oracle.check_recovers(session)
    oracle.check_serves(cloud)


def test_cancel_amid_a_transfer(oracle: Oracle, cloud: Served) -> None:
    """What was queued goes no further, and the next question need not wait for it.

    On a busy host all of it may have left before the cancel comes to act, so it has to hold for one of a few.
    """
    whole_bytes, spared_bytes = LARGE * 96, list[int]()
    with _through(oracle, cloud, LinkShape(2e6), attempt_s=30.0) as (link, session):
        while not spared_bytes or (spared_bytes[-1] <= 0 and len(spared_bytes) < 4):
            future = _amid(link, session, 300_000)
            assert future.cancel()
            sent_bytes = link.carried_bytes[0]
            answer = session.run(inputs_of(2), plan=BY_CLOUD)
            oracle.check(answer, 2)
            assert answer.report.plan == BY_CLOUD
            spared_bytes.append(whole_bytes - 300_000 - (link.carried_bytes[0] - sent_bytes))
    assert spared_bytes[-1] > 0, spared_bytes
    oracle.check_serves(cloud)


def test_a_caller_that_changes_its_array(oracle: Oracle, cloud: Served) -> None:
    """The answer is that to the question as it was asked, however late its bytes leave."""
    with _through(oracle, cloud, _BROAD) as (_, session):
        inputs = inputs_of(5, LARGE)
        future = session.submit(inputs, plan=BY_CLOUD)
        inputs["x"][:] = float("nan")
        answer = future.result()
        oracle.check(answer, 5, LARGE)
        assert answer.report.plan == BY_CLOUD
