"""Plans with codecs, run over workers: each answers as its own reference does, bit for bit, whatever travels how."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.apps import lossy, models
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.compare import compare, to_data
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.plan_graphs import is_lossy, plan_reference
from flagsplit.errors import BundleError, PeerError
from flagsplit.runtime.bundle import GRAPH_NAME, PLANS_NAME, Bundle, PlanSet
from flagsplit.runtime.inputs import random_inputs
from flagsplit.runtime.session import Session
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.targets.interface import LoadOptions

HOST = LoadOptions(threads=1)

pytestmark = pytest.mark.usefixtures("own_folders")


def check(session: Session, bundle: Bundle, plan: str, inputs: dict[str, models.Array]) -> dict[str, models.Array]:
    """Run a plan and compare it with its reference."""
    answer = session.run(inputs, plan=plan)
    assert answer.report.plan == plan
    with plan_reference(bundle, plan, HOST) as made:
        wanted = made.run(inputs)
    assert answer.keys() == wanted.keys()
    assert to_data(compare(wanted, answer))["max_abs"] == 0, plan
    return dict(answer)


@pytest.mark.slow
@pytest.mark.parametrize("codec", lossy.CODECS)
def test_every_plan_is_its_reference(serve: Serve, tmp_path: Path, codec: str) -> None:
    bundle = lossy.build_with(tmp_path, codec)
    whole = bundle.load_whole(HOST)
    with flagsplit.connect(bundle, serve(bundle)) as session:
        for plan in bundle.plans.pool.plans:
            for batch in (1, 3):
                inputs = lossy.inputs_of(batch, batch)
                answer = check(session, bundle, plan.name, inputs)
                away = compare(whole.run(inputs), answer)
                assert (to_data(away)["max_abs"] > 0) == is_lossy(plan)
                assert codec != "fp16" or to_data(away)["max_rel"] < 0.01
    whole.close()
    coded = {(cut.value, cut.from_tier < cut.to_tier) for cut in bundle.plan("every-way").cuts if cut.codec == codec}
    assert coded == {("x", True), ("v", True), ("v", False), ("b", True), ("d", False)}
    ways = {(cut.from_tier < cut.to_tier, cut.codec) for cut in bundle.plan("up").cuts if cut.value == "b"}
    assert ways == {(True, codec), (False, "none")}, "an answer leaves as it is"


@pytest.mark.slow
def test_what_travels_is_the_encoded_tensor(serve: Serve, tmp_path: Path) -> None:
    bundle = lossy.build_with(tmp_path, "u8")
    elements = 2 * 5 * lossy.WIDTH
    coded, plain = elements + 5, 4 * elements
    with flagsplit.connect(bundle, serve(bundle)) as session:
        report = session.run(lossy.inputs_of(0), plan="up").report
    sent = {(link.source, link.target): link.bytes for link in report.links}
    # Up: x and v, then x and b. Down: q, then q, p and b.
    assert sent == {
        ("phone", "edge"): 2 * coded,
        ("edge", "cloud"): 2 * coded,
        ("cloud", "edge"): plain,
        ("edge", "phone"): 3 * plain,
    }
    predicted = bundle.plan("up").features
    assert (predicted.up_bytes, predicted.down_bytes) == ((2.0 * coded, 2.0 * coded), (3.0 * plain, 1.0 * plain))


@pytest.mark.slow
def test_the_graph_in_the_bundle_has_no_codecs(tmp_path: Path) -> None:
    """A bundle without codecs is as it was before there were any; one with them differs in plans and segments alone."""
    plain, coded = lossy.build_with(tmp_path, "none"), lossy.build_with(tmp_path, "fp16")
    assert (plain.folder / GRAPH_NAME).read_bytes() == (coded.folder / GRAPH_NAME).read_bytes()
    assert b"answers" not in (plain.folder / PLANS_NAME).read_bytes()
    assert plain.plans.answers == {}
    assert {step.segment for step in plain.plans.steps["up"]}.isdisjoint(
        step.segment for step in coded.plans.steps["up"]
    )
    again = PlanSet.from_json(coded.plans.to_json())
    assert again == coded.plans
    assert set(again.answers["every-way"]) == {"p", "q", "b"}


@pytest.mark.slow
def test_damaged_answers(tmp_path: Path) -> None:
    plans = lossy.build_with(tmp_path, "fp16").plans

    def read(answers: object) -> PlanSet:
        return PlanSet.from_json(json.dumps({**json.loads(plans.to_json()), "answers": answers}).encode())

    with pytest.raises(BundleError, match=r"answers: plan 'nobody' is not in the pool"):
        read({"nobody": {}})
    with pytest.raises(BundleError, match=r"answers: expected an object"):
        read([])
    with pytest.raises(BundleError, match=r"answers\.down\.q: expected a string"):
        read({"down": {"q": 3}})
    with pytest.raises(BundleError, match=r"plan '.*' does not make all outputs"):
        read({"down": {**plans.answers["down"], "q": "elsewhere"}}).check_values("x", "pqb")


@pytest.mark.slow
def test_a_plan_goes_round_a_tier_with_real_processes(tmp_path: Path) -> None:
    bundle = lossy.build_with(tmp_path, "u8", routes={"far": (0, 2)})
    with flagsplit.connect(bundle) as session:
        inputs = lossy.inputs_of(3)
        check(session, bundle, "far", inputs)
        links = [(link.source, link.target) for link in session.run(inputs, plan="far").report.links]
        assert links == [("phone", "cloud"), ("cloud", "phone")]


def _thirds(problem: Problem) -> dict[str, Sequence[int]]:
    """Up the line once; there, back and back again; and a tier for each block in turn."""
    n = len(problem.graph.blocks)
    third, quarter = n // 3, n // 4
    return {
        "up": [0] * third + [1] * third + [2] * (n - 2 * third),
        "home": [0] * quarter + [2] * quarter + [1] * quarter + [0] * (n - 3 * quarter),
        "weave": [at * 7 // n % 3 for at in range(n)],
    }


@pytest.mark.slow
@pytest.mark.parametrize("codec", lossy.CODECS)
def test_a_real_model(serve: Serve, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as own:
        own.delenv("FLAGSPLIT_CACHE")
        try:
            model = zoo.pull("ppocr-rec")
        except PeerError as error:
            pytest.skip(str(error))
    build(
        model,
        lossy.TIERS,
        tmp_path / "x.flagsplit",
        links={"edge": "100kbit/1ms", "cloud": "100kbit/1ms"},
        sla=parse_sla({"accuracy": {"every_cut": {"codecs": [codec]}}}),
        options=BuildOptions(dims={"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 96}, extra_plans=_thirds),
    )
    bundle = flagsplit.open(tmp_path / "x.flagsplit")
    inputs = random_inputs(bundle.inputs, bundle.facts.nominal_dims)
    with flagsplit.connect(bundle, serve(bundle)) as session:
        for plan in _thirds_of(bundle):
            assert sum(cut.codec == codec for cut in bundle.plan(plan).cuts) >= 3
            check(session, bundle, plan, inputs)


def _thirds_of(bundle: Bundle) -> list[str]:
    names = [plan.name for plan in bundle.plans.pool.plans if plan.name in ("up", "home", "weave")]
    assert len(names) == 3
    return names
