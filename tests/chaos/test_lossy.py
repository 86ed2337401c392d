"""Plans with codecs on real workers that are killed: every answer comes, and is that of its plan's reference."""

import random
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.apps import lossy
from tests.chaos.fleet import Fleet

import flagsplit
from flagsplit.apps.plan_graphs import is_lossy, plan_reference
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.session import Answer, SessionSettings
from flagsplit.runtime.session_machine import SessionOptions
from flagsplit.targets.interface import Executable, LoadOptions

pytestmark = pytest.mark.slow

_PATIENCE_S = 40.0
_SETTINGS = SessionSettings(
    deadline_s=_PATIENCE_S,
    host=LoadOptions(threads=1),
    machine=SessionOptions(attempt_s=3.0, liveness=LivenessOptions(heartbeat_s=0.25, missed=4)),
)
_PLANS = ("every-way", "far", "all-edge", "all-phone")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three lossy plans, the second of which goes round the edge, and an exact one."""
    folder: Path = tmp_path_factory.mktemp("lossy")
    return lossy.build_with(folder, "u8_per_channel", routes={"far": (0, 2)}, order=_PLANS)


@pytest.fixture(scope="module")
def references(bundle: Bundle) -> Iterator[dict[str, Executable]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(plan_reference(bundle, name, LoadOptions(threads=1))) for name in _PLANS}


@pytest.mark.parametrize(
    ("tiers", "seed", "takes_over"),
    [
        (("cloud",), 1, "all-edge"),
        (("edge",), 2, "far"),
        (("edge", "cloud"), 3, "all-phone"),
        (("cloud",), 4, "all-edge"),
    ],
)
def test_kill_9(
    bundle: Bundle,
    fleet: Fleet,
    references: dict[str, Executable],
    tiers: tuple[str, ...],
    seed: int,
    takes_over: str,
) -> None:
    assert [is_lossy(bundle.plan(name)) for name in _PLANS] == [True, True, True, False]
    count = 60
    moment = random.Random(seed).randrange(5, 30)
    futures: list[Future[Answer]] = []
    with flagsplit.connect(bundle, fleet.addresses, settings=_SETTINGS) as session:
        for number in range(count):
            future = session.submit(lossy.inputs_of(number, 1 + number % 3))
            if number == moment:
                future.add_done_callback(lambda _: fleet.kill(*tiers))
            futures.append(future)
        plans = set()
        for number, future in enumerate(futures):
            answer = future.result(_PATIENCE_S)
            wanted = references[answer.report.plan].run(lossy.inputs_of(number, 1 + number % 3))
            assert answer.keys() == wanted.keys()
            same = (np.array_equal(answer[name], array) for name, array in wanted.items())
            assert all(same), f"request {number} under {answer.report.plan} in attempt {answer.report.attempts}"
            plans.add(answer.report.plan)
        assert {"every-way", takes_over} <= plans
        assert not session._machine.flights
