"""`flagsplit.build`, `open`, `connect` and their asyncio twins."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.apps import models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.errors import BundleError, ConfigError, InputError, PeerError, PolicyError

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def image() -> models.Array:
    return np.asarray(np.random.default_rng(11).standard_normal((1, 3, 18, 18))).astype(np.float32)


def test_the_three_words(serve: Serve, small_model: Path, tmp_path: Path, image: models.Array) -> None:
    built = flagsplit.build(small_model, "phone,edge,cloud", tmp_path / "x.flagsplit", sla=models.SPLIT_SLA)
    assert built.size_bytes == built.path.stat().st_size
    bundle = flagsplit.open(built.path)
    assert bundle.digest == built.digest
    expected = models.answers_of(small_model, {"image": image})
    with flagsplit.connect(bundle, serve(bundle)) as session:
        assert session.tiers == {"edge": "up", "cloud": "up"}
        answer = session.run({"image": image})
        models.assert_near(answer["scores"], expected["scores"])
        assert answer.report.latency_ms > 0
        answers = list(session.stream({"image": image} for _ in range(10)))
        assert all(np.array_equal(each["scores"], answer["scores"]) for each in answers)
    with pytest.raises(PeerError, match="the session is closed"):
        session.run({"image": image})


def test_the_asyncio_twins(serve: Serve, small_model: Path, tmp_path: Path, image: models.Array) -> None:
    async def requests() -> AsyncIterator[Mapping[str, object]]:
        for _ in range(5):
            yield {"image": image}

    async def way_through() -> list[flagsplit.Answer]:
        built = await flagsplit.build_async(
            small_model, "phone,edge,cloud", tmp_path / "x.flagsplit", sla=models.SPLIT_SLA
        )
        bundle = await flagsplit.open_async(built.path)
        async with flagsplit.connect_async(bundle, serve(bundle)) as session:
            assert session.bundle is bundle
            assert session.tiers == {"edge": "up", "cloud": "up"}
            first, second = await asyncio.gather(session.run({"image": image}), session.run({"image": image}))
            with pytest.raises(InputError, match="expected inputs 'image'"):
                await session.run({})
            return [first, second, *[answer async for answer in session.stream(requests())]]

    answers = asyncio.run(way_through())
    expected = models.answers_of(small_model, {"image": image})
    assert len(answers) == 7
    for answer in answers:
        models.assert_near(answer["scores"], expected["scores"])


def test_errors_leave_the_asyncio_twin(small_bundle: Path) -> None:
    async def fails() -> None:
        async with flagsplit.connect_async(small_bundle, {}):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(fails())


def test_the_first_tier_alone(small_bundle: Path, image: models.Array) -> None:
    with flagsplit.connect(small_bundle, {}) as session:
        assert session.tiers == {}
        assert session.run({"image": image}).report.plan == "all-phone"


@pytest.mark.slow
def test_workers_are_started_here(small_bundle: Path, image: models.Array) -> None:
    with flagsplit.connect(small_bundle) as session:
        assert session.tiers == {"edge": "up", "cloud": "up"}
        assert session.run({"image": image}, plan="all-cloud").report.plan == "all-cloud"


@pytest.mark.slow
def test_an_application_may_have_many_files_open(small_bundle: Path, image: models.Array) -> None:
    """`select` takes no descriptors beyond 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("the operator allows fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with flagsplit.connect(small_bundle) as session:
            assert session.run({"image": image}, plan="all-cloud").report.plan == "all-cloud"
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_workers_are_started_slowed(small_bundle: Path, image: models.Array) -> None:
    with flagsplit.connect(small_bundle, slowdowns={"edge": 20.0}) as session:
        answers = {plan: session.run({"image": image}, plan=plan) for plan in ("all-edge", "all-cloud") * 3}
        run_ms = {plan: sum(tier.run_ms for tier in answer.report.tiers) for plan, answer in answers.items()}
        assert run_ms["all-edge"] > 4 * run_ms["all-cloud"]
        assert answers["all-cloud"].report.basis == "emulated"


def test_misuse(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        flagsplit.open(tmp_path / "none.flagsplit")
    for tiers, error in (
        ({"car": "tcp://127.0.0.1:1"}, PolicyError),
        ({"phone": "tcp://127.0.0.1:1"}, ConfigError),
        ({"edge": "nowhere"}, ConfigError),
    ):
        with pytest.raises(error), flagsplit.connect(small_bundle, tiers):
            pass


def test_a_policy_of_another_type_is_refused(small_model: Path) -> None:
    with pytest.raises(PolicyError, match="expected an SLA, a mapping or the path of a file, came list"):
        flagsplit.plan(small_model, "phone,cloud", sla=[1])  # type: ignore[arg-type]


def test_a_cache_of_ones_own(small_bundle: Path, tmp_path: Path) -> None:
    bundle = flagsplit.open(small_bundle, cache=tmp_path)
    assert bundle.folder == tmp_path / "bundles" / bundle.digest
