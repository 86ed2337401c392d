"""Buckets of 1, 4 and 16 rows against the unsplit model with its batch open: over memory, and with real workers."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from tests.runtime.bundles import TIERS, build_buckets, build_bundle, inputs_of

import flagsplit
from flagsplit.apps.local import LocalWorkers
from flagsplit.errors import ConfigError, InputError, PeerError, PolicyError, UnavailableError
from flagsplit.runtime.bucketed import BucketedSession, Pad, pad_with_zeros
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session, SessionSettings
from flagsplit.runtime.worker import Worker
from flagsplit.targets.interface import Array, Executable, LoadOptions
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import PeerAddress

BUCKETS = (1, 4, 16)
SIZES = range(1, 17)
SETTINGS = SessionSettings(deadline_s=30.0, connect_s=10.0, host=LoadOptions(threads=1))
ADDRESSES = {tier: PeerAddress(f"mem://{tier}") for tier in TIERS[1:]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("buckets")
    return [flagsplit.open(path, cache=folder / "cache") for path in build_buckets(folder, BUCKETS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executable]:
    """The unsplit model with an open batch."""
    folder = tmp_path_factory.mktemp("open")
    loaded = flagsplit.open(build_bundle(folder), cache=folder / "cache").load_whole(LoadOptions(threads=1))
    yield loaded
    loaded.close()


@contextmanager
def connected(
    bundles: Sequence[Bundle], *tiers: str, pad: Pad = pad_with_zeros, crop: bool = True
) -> Iterator[tuple[BucketedSession, dict[str, Worker]]]:
    """Workers that serve all the buckets over channels in memory, and a session of them."""
    network = MemoryNetwork()
    with ExitStack() as stack:
        workers = {}
        for tier in tiers:
            workers[tier] = Worker(bundles, tier, MemoryChannel(network), f"mem://{tier}")
            stack.callback(workers[tier].stop)
        addresses = {tier: ADDRESSES[tier] for tier in tiers}
        sessions = [
            stack.enter_context(Session(bundle, addresses, MemoryChannel(network), SETTINGS)) for bundle in bundles
        ]
        yield stack.enter_context(BucketedSession(sessions, "batch", pad, crop=crop)), workers


def assert_near(found: Array, wanted: Array) -> None:
    assert np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= 1e-5


def assert_right(whole: Executable, answer: Answer, number: int, batch: int) -> None:
    wanted = whole.run(inputs_of(number, batch))["y"]
    assert answer["y"].shape == wanted.shape
    assert_near(answer["y"], wanted)


@pytest.mark.slow
def test_answers_are_those_of_the_open_model(bundles: list[Bundle], whole: Executable) -> None:
    with connected(bundles, "edge", "cloud") as (session, _):
        assert (session.symbol, tuple(session.sessions)) == ("batch", BUCKETS)
        assert session.tiers == {"edge": "up", "cloud": "up"}
        assert session.has_room
        for batch in SIZES:
            answer = session.run(inputs_of(batch, batch))
            assert_right(whole, answer, batch, batch)
            assert answer.report.plan == "plan0"
        for ordered in (True, False):
            asked = (inputs_of(batch, batch) for batch in SIZES)
            answers = list(session.stream(asked, ordered=ordered))
            if not ordered:
                answers.sort(key=lambda answer: len(answer["y"]))
            for batch, answer in zip(SIZES, answers, strict=True):
                assert_right(whole, answer, batch, batch)


@pytest.mark.slow
def test_what_one_asks_reaches_the_bucket(bundles: list[Bundle], whole: Executable) -> None:
    with connected(bundles, "edge", "cloud") as (session, _):
        answer = session.run(inputs_of(3, 3), plan="plan1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        assert answer.report.plan == "plan1"
        assert_right(whole, answer, 3, 3)
        with pytest.raises(PolicyError, match="nonsense"):
            session.submit(inputs_of(3, 3), plan="nonsense")
        with pytest.raises(InputError, match="traceparent"):
            session.submit(inputs_of(3, 3), traceparent="nonsense")
        with pytest.raises(UnavailableError):
            session.run(inputs_of(3, 3), deadline_s=0.0)


@pytest.mark.slow
def test_wrong_requests_are_refused_before_they_are_sent(bundles: list[Bundle]) -> None:
    def askew(_name: str, array: Array, _axis: int, size: int) -> Array:
        return np.zeros((size, 1), array.dtype)

    with connected(bundles, pad=askew) as (session, _):
        for batch in (0, 17):
            with pytest.raises(InputError, match=f"size of 1 to 16 for dimension 'batch', came {batch}; add a bucket"):
                session.submit(inputs_of(1, batch))
        with pytest.raises(InputError, match="expected inputs 'x'"):
            session.submit({})
        with pytest.raises(InputError, match=r"expected shape \[batch, 24\]"):
            session.submit({"x": np.zeros((3, 5), np.float32)})
        with pytest.raises(InputError, match=r"\[4, 24\] of pad, came float32 \[4, 1\]; pad along axis 0 alone"):
            session.submit(inputs_of(1, 3))
        assert session.run(inputs_of(1, 4))["y"].shape == (4, 24)
        session.close()
        session.close()
        with pytest.raises(PeerError, match="closed"):
            session.submit(inputs_of(1, 4))


@pytest.mark.slow
def test_own_padding_and_no_cropping(bundles: list[Bundle], whole: Executable) -> None:
    seen: list[tuple[str, int, int]] = []

    def ones(name: str, array: Array, axis: int, size: int) -> Array:
        seen.append((name, axis, size))
        return np.concatenate([array, np.ones((size - len(array), array.shape[1]), array.dtype)])

    with connected(bundles, pad=ones, crop=False) as (session, _):
        padded = session.run(inputs_of(2, 5))["y"]
    assert (seen, padded.shape) == ([("x", 0, 16)], (16, 24))
    given = np.concatenate([inputs_of(2, 5)["x"], np.ones((11, 24), np.float32)])
    assert_near(padded, whole.run({"x": given})["y"])


@pytest.mark.slow
def test_a_cancelled_request_is_abandoned(bundles: list[Bundle], whole: Executable) -> None:
    with connected(bundles) as (session, _):
        futures = [session.submit(inputs_of(n, 3)) for n in range(20)]
        cancelled = [future.cancel() for future in futures]
        for number, future in enumerate(futures):
            if cancelled[number]:
                with pytest.raises(CancelledError):
                    future.result(10)
            else:
                assert_right(whole, future.result(10), number, 3)
        assert any(cancelled)
        assert_right(whole, session.run(inputs_of(7, 2)), 7, 2)


@pytest.mark.slow
def test_a_worker_that_stops_in_a_stream_loses_nothing(bundles: list[Bundle], whole: Executable) -> None:
    batches = [1 + n % 16 for n in range(48)]
    with connected(bundles, "edge", "cloud") as (session, workers):
        asked = (inputs_of(number, batch) for number, batch in enumerate(batches))
        for number, answer in enumerate(session.stream(asked)):
            assert_right(whole, answer, number, batches[number])
            if number == 10:
                workers["cloud"].stop()
        assert number == len(batches) - 1
        assert (session.tiers["edge"], session.tiers["cloud"] == "up") == ("up", False)


@pytest.mark.slow
def test_bundles_that_are_no_buckets_are_refused_before_a_worker_starts(bundles: list[Bundle]) -> None:
    for wrong, message in (([], "two sizes or more, came 0"), ([*bundles, bundles[0]], "another fixed size")):
        with pytest.raises(ConfigError, match=message), flagsplit.connect_buckets(wrong):
            pass


@pytest.mark.slow
def test_real_workers_serve_all_buckets_and_one_is_killed(bundles: list[Bundle], whole: Executable) -> None:
    batches = [1 + n % 16 for n in range(64)]
    paths = [bundle.path for bundle in bundles]
    with (
        LocalWorkers(paths, TIERS[1:]) as workers,
        flagsplit.connect_buckets(bundles, workers.addresses, symbol="batch", settings=SETTINGS) as session,
    ):
        assert session.tiers == {"edge": "up", "cloud": "up"}
        asked = (inputs_of(number, batch) for number, batch in enumerate(batches))
        plans = []
        for number, answer in enumerate(session.stream(asked)):
            assert_right(whole, answer, number, batches[number])
            plans.append(answer.report.plan)
            if number == 20:
                workers.workers["cloud"].process.kill()
        assert len(plans) == len(batches)
        assert plans[0] == "plan0"
        assert plans[-1] in ("plan2", "plan3")


@pytest.mark.slow
def test_workers_are_started_here(bundles: list[Bundle], whole: Executable) -> None:
    with flagsplit.connect_buckets([bundle.path for bundle in bundles], settings=SETTINGS) as session:
        for batch in SIZES:
            assert_right(whole, session.run(inputs_of(batch, batch)), batch, batch)
        assert session.tiers == {"edge": "up", "cloud": "up"}
