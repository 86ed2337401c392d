"""Bundles with atoms: when they are made, and that chains answer as whole segments do, bit for bit."""

from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from tests.apps import lossy, models
from tests.apps.conftest import Serve
from tests.flagir.models import light_path

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.errors import BundleError, PeerError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.runtime.inputs import random_inputs
from flagsplit.runtime.residency import Loadout, loadout
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import SLA
from flagsplit.targets.interface import Array, Executable, LoadOptions

HOST = LoadOptions(threads=1)
TIERS = ("phone", "cloud")


def _cuts(problem: Problem) -> dict[str, list[int]]:
    """Plans that cut in a third and two thirds, and one that leaves the middle at home."""
    n = len(problem.graph.blocks)
    third = n // 3
    return {
        "early": [0] * third + [1] * (n - third),
        "late": [0] * 2 * third + [1] * (n - 2 * third),
        "middle": [1] * third + [0] * third + [1] * (n - 2 * third),
    }


def _build(model: Path, folder: Path, residency: ResidencyChoice, dims: dict[str, int] | None = None) -> Bundle:
    options = BuildOptions(dims=dims or {}, residency=residency, extra_plans=_cuts)
    return flagsplit.open(build(model, TIERS, folder / f"{residency}.flagsplit", options=options).path, cache=folder)


@pytest.fixture(scope="module")
def atoms(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model with atoms."""
    folder = tmp_path_factory.mktemp("atoms")
    return _build(models.save(models.small(), folder / "m.onnx"), folder, "atoms", {"N": 1, "H": 32, "W": 32})


def test_every_weight_is_in_one_atom(atoms: Bundle) -> None:
    for tier in range(2):
        artifact = atoms.facts.tiers[tier].artifacts[0]
        chains = atoms.chains_of(tier)
        assert chains
        parts = {part for segment in atoms.segments_of(tier) for part in chains.get(segment, (segment,))}
        assert sum(artifact.weight_bytes[part] for part in parts) == atoms.facts.weights_bytes
        assert sum(artifact.weight_bytes[segment] for segment in atoms.segments_of(tier)) > atoms.facts.weights_bytes


def test_atoms_are_made_where_segments_do_not_fit_or_by_request(tmp_path: Path) -> None:
    model = models.save(models.small(), tmp_path / "m.onnx")
    assert not _build(model, tmp_path, "segments").chains_of(1)
    roomy = _build(model, tmp_path, "auto")
    assert not roomy.chains_of(1)
    needed_mb = roomy.plan("all-cloud").features.resident_bytes[1] / 1e6
    tight = build(
        model,
        TIERS,
        tmp_path / "tight.flagsplit",
        sla=SLA(memory_mb={"cloud": 1.01 * needed_mb}),
        options=BuildOptions(extra_plans=_cuts),
    )
    assert flagsplit.open(tight.path, cache=tmp_path).chains_of(1)


def test_a_bundle_without_atoms_says_how_to_get_them(tmp_path: Path) -> None:
    bundle = _build(models.save(models.small(), tmp_path / "m.onnx"), tmp_path, "segments")
    assert loadout(bundle, 1, 0.0, HOST).mode == "segments"
    with pytest.raises(BundleError, match="--residency atoms"):
        loadout(bundle, 1, 1e9, HOST, "atoms")


def test_segments_are_held_whole_while_they_fit(atoms: Bundle) -> None:
    assert loadout(atoms, 1, 1e12, HOST).mode == "segments"
    assert loadout(atoms, 1, 1.0, HOST).mode == "atoms"
    assert loadout(atoms, 1, 1.0, HOST, "segments").mode == "segments"


def test_a_damaged_chain_is_an_error(atoms: Bundle) -> None:
    artifact = atoms.facts.tiers[1].artifacts[0]
    segment, chain = next(iter(artifact.chains.items()))
    for damaged in ([*chain, "nothing"], []):
        artifact.chains[segment] = damaged
        with pytest.raises(BundleError, match="build the bundle again"):
            atoms.chains_of(1)
    artifact.chains[segment] = chain


def _answers(bundle: Bundle, held: list[Loadout], plan: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Every value that a plan's segments make, run one after the other."""
    values = dict(inputs)
    for step in bundle.plans.steps[plan]:
        executable = held[step.tier].load(step.segment)
        made = executable.run({name: values[name] for name in step.inputs})
        assert set(step.outputs) <= made.keys()
        values |= {name: made[name] for name in step.outputs}
        executable.close()
    return values


def check_chains(bundle: Bundle) -> None:
    """Whole segments and chains of atoms make the same, bit for bit, under every plan."""
    inputs = random_inputs(bundle.inputs, bundle.facts.nominal_dims)
    whole = [loadout(bundle, tier, 1.0, HOST, "segments") for tier in range(len(bundle.tiers))]
    chained = [loadout(bundle, tier, 1.0, HOST) for tier in range(len(bundle.tiers))]
    assert any(each.mode == "atoms" for each in chained)
    for plan in bundle.plans.pool.plans:
        expected = _answers(bundle, whole, plan.name, inputs)
        for name, came in _answers(bundle, chained, plan.name, inputs).items():
            np.testing.assert_array_equal(came, expected[name], f"{plan.name}: {name}")


def test_chains_answer_as_whole_segments(atoms: Bundle) -> None:
    check_chains(atoms)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"),
        *(pytest.param(name, marks=pytest.mark.large) for name in ("vgg19", "zfnet512")),
    ],
)
def test_chains_of_light_networks(name: str, tmp_path: Path) -> None:
    check_chains(_build(light_path(name), tmp_path, "atoms"))


@pytest.mark.slow
def test_chains_of_a_real_model(tmp_path: Path) -> None:
    try:
        model = zoo.pull("ppocr-rec")
    except PeerError as error:
        pytest.skip(str(error))
    dims = {"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 96}
    check_chains(_build(model, tmp_path, "atoms", dims))


@pytest.mark.slow
def test_switching_between_resident_plans_loads_nothing_and_takes_less_than_a_millisecond(atoms: Bundle) -> None:
    held = loadout(atoms, 1, 1e9, HOST, "atoms")
    loads: list[str] = []
    results: Queue[Ran] = Queue()

    def load(bundle: str, segment: str) -> Executable:
        assert not bundle
        loads.append(segment)
        return held.load(segment)

    engine = Engine(load, held.order, held.size_bytes, 1e9, results.put, parts=held.parts, mode=held.mode)
    engine.start(held.order)
    whole = [loadout(atoms, tier, 1.0, HOST) for tier in range(2)]
    inputs = random_inputs(atoms.inputs, atoms.facts.nominal_dims)
    asked = [
        (step.segment, {name: values[name] for name in step.inputs})
        for plan in atoms.plans.pool.plans
        for values in (_answers(atoms, whole, plan.name, inputs),)
        for step in atoms.plans.steps[plan.name]
        if step.tier == 1
    ]
    waits = []
    for token in range(100):
        segment, feed = asked[token % len(asked)]
        engine.submit(Run(token, segment, feed))
        ran = results.get(timeout=10)
        assert ran.error == ""
        waits.append(ran.wait_us)
    engine.stop()
    assert sorted(loads) == sorted(held.order)
    assert float(np.median(waits)) < 1000


@pytest.mark.slow
def test_a_worker_that_holds_atoms_answers(serve: Serve, atoms: Bundle) -> None:
    inputs = random_inputs(atoms.inputs, atoms.facts.nominal_dims)
    whole = atoms.load_whole(HOST)
    expected = whole.run(inputs)
    whole.close()
    with flagsplit.connect(atoms, serve(atoms)) as session:
        for plan in atoms.plans.pool.plans:
            for name, came in session.run(inputs, plan=plan.name).items():
                np.testing.assert_array_equal(came, expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["u8", "fp16"])
def test_chains_of_lossy_plans(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path))
    check_chains(lossy.build_with(tmp_path, codec, residency="atoms"))
