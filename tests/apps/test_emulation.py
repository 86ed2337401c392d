"""Real workers behind shaped links: what a plan takes, what crosses the links, and an answer when a link breaks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.apps import models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.transport.emulation import LinkShape, ShapingProxy

pytestmark = [pytest.mark.usefixtures("own_folders"), pytest.mark.slow]
DELAY_S = 0.01


@pytest.fixture
def image() -> models.Array:
    return np.asarray(np.random.default_rng(5).standard_normal((8, 3, 24, 24))).astype(np.float32)


Links = tuple[ShapingProxy, ShapingProxy]


@pytest.fixture
def line(serve: Serve, small_bundle: Path) -> Iterator[Callable[[LinkShape], tuple[Session, Links]]]:
    """A session whose way to the edge, and the edge's to the cloud, are links of that shape."""
    with ExitStack() as stack:

        def join(shape: LinkShape) -> tuple[Session, Links]:
            bundle = flagsplit.open(small_bundle)
            ports = {tier: int(address.rpartition(":")[2]) for tier, address in serve(bundle).items()}
            edge, cloud = (stack.enter_context(ShapingProxy("127.0.0.1", ports[tier], shape)) for tier in ports)
            addresses = {"edge": edge.address, "cloud": cloud.address}
            settings = SessionSettings(emulated=True)
            return stack.enter_context(flagsplit.connect(bundle, addresses, settings=settings)), (edge, cloud)

        yield join


def test_plans_pay_for_the_links_that_they_cross(
    line: Callable[[LinkShape], tuple[Session, Links]], small_model: Path, image: models.Array
) -> None:
    session, links = line(LinkShape(2.5e6, DELAY_S))
    expected = models.answers_of(small_model, {"image": image})["scores"]
    wire_s = 2 * DELAY_S + image.nbytes / 2.5e6
    for plan, least_s in (("all-phone", 0.0), ("all-edge", wire_s), ("all-cloud", 2 * wire_s)):
        before = [link.carried_bytes[0] for link in links]
        answer = session.run({"image": image}, plan=plan)
        models.assert_near(answer["scores"], expected)
        assert answer.report.plan == plan
        assert answer.report.basis == "emulated"
        assert answer.report.latency_ms >= least_s * 1e3
        after = [link.carried_bytes[0] for link in links]
        crossed = [now - then > image.nbytes for now, then in zip(after, before, strict=True)]
        assert crossed == [plan != "all-phone", plan == "all-cloud"]


def test_a_link_that_breaks_in_mid_request_loses_nothing(
    line: Callable[[LinkShape], tuple[Session, Links]], small_model: Path, image: models.Array
) -> None:
    session, (edge, _) = line(LinkShape(0.2e6, DELAY_S))
    asked = session.submit({"image": image}, plan="all-edge")
    edge.cut()
    answer = asked.result()
    models.assert_near(answer["scores"], models.answers_of(small_model, {"image": image})["scores"])
