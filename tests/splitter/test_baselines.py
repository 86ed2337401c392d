"""Baselines against exhaustive search and against the figures they stand for."""

import random

import numpy as np
import pytest

from flagsplit.splitter.baselines import CHAIN_CUT, TWO_TIER_CUT, Baseline, all_baselines, chain_cut, two_tier_cut
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.input_forms import InputTensor, forms_of
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, placements, random_problem

IMAGE = InputTensor("image", "float32", (1, 3, 224, 224))


def _three(catalogue: Catalogue, link: str = "20mbit/10ms", **sla: object) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=[link, "wan"], catalogue=catalogue)
    return make_problem(cnn(), tiers, links, parse_sla(sla))


def _named(found: tuple[Baseline, ...]) -> dict[str, Baseline]:
    return {each.plan.name: each for each in found}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_cuts_are_the_best_of_their_kind(catalogue: Catalogue, seed: int) -> None:
    problem = random_problem(random.Random(seed), catalogue, most_placements=300)
    last = len(problem.tiers) - 1
    rows = np.array(list(placements(problem)))
    values = Usage(problem, rows).measure(objective_rates(problem, problem.nominal))
    two = np.isin(rows, (0, last)).all(axis=1)
    chain = two & (np.diff(rows, axis=1) >= 0).all(axis=1)
    for found, mask in ((chain_cut(problem), chain), (two_tier_cut(problem), two)):
        if not mask.any():
            assert not found.allowed
        else:
            assert found.allowed
            placement = np.array([found.plan.placement])
            mine = float(Usage(problem, placement).measure(objective_rates(problem, problem.nominal))[0])
            assert mine == pytest.approx(float(values[mask].min()), rel=1e-6)


def test_limits_count(catalogue: Catalogue) -> None:
    problem = _three(catalogue, memory_mb={"phone": 2.0})
    found = chain_cut(problem)
    assert found.allowed == which_keep(Usage(problem, np.array([found.plan.placement])))[0]
    capped = _named(all_baselines(problem))
    assert "memory_mb of phone would be" in (capped["all-phone"].reason or "")


def test_ours_is_never_worse_than_an_allowed_baseline_of_the_same_inputs(catalogue: Catalogue) -> None:
    for link in ("1mbit/50ms", "20mbit/10ms", "1gbit/1ms"):
        problem = _three(catalogue, link)
        best = solve(problem).objective
        for each in all_baselines(problem):
            assert each.allowed
            assert best <= each.plan.predicted.latency_s * (1 + 1e-9)


def test_a_compressed_picture_costs_its_bytes_and_its_coding(catalogue: Catalogue) -> None:
    problem = _three(catalogue)
    (jpeg, webp) = forms_of([IMAGE])
    assert (jpeg.name, webp.name) == ("JPEG", "WebP")
    found = _named(all_baselines(problem, [jpeg, webp]))
    raw, coded = found["all-cloud"].plan, found["all-cloud (JPEG input)"].plan
    assert coded.features.up_bytes[0] == round(224 * 224 * 2.38 / 8)
    assert raw.features.up_bytes[0] == 4 * 3 * 224 * 224
    assert coded.features.down_bytes == raw.features.down_bytes
    phone, cloud = problem.tiers[0].device, problem.tiers[2].device
    extra = coded.features.tier_seconds[0] - raw.features.tier_seconds[0]
    assert extra == pytest.approx(224 * 224 * 3 * (25e9 / 700e6) / phone.memory_bandwidth.value)
    extra = coded.features.tier_seconds[2] - raw.features.tier_seconds[2]
    assert extra == pytest.approx(224 * 224 * 3 * (25e9 / 300e6) / cloud.memory_bandwidth.value)
    assert found["all-cloud (WebP input)"].note == "quality 90; the answer changes"


def test_privacy_rules_a_compressed_picture_out_too(catalogue: Catalogue) -> None:
    problem = _three(catalogue, keep_on={"inputs": "phone"})
    found = _named(all_baselines(problem, forms_of([IMAGE])))
    assert "keep_on 'inputs' wants phone" in (found["all-cloud (JPEG input)"].reason or "")


@pytest.mark.parametrize(
    ("dtype", "shape", "names"),
    [
        ("float32", (1, 3, 224, 224), ["JPEG", "WebP"]),
        ("uint8", (2, 48, 320, 1), ["JPEG", "WebP"]),
        ("float32", (1, 3, 16, 224), ["fp16"]),
        ("float32", (1, 16000), ["fp16"]),
        ("int64", (1, 128), []),
        ("float32", (1, 64, 56, 56), ["fp16"]),
    ],
)
def test_which_forms_fit(dtype: str, shape: tuple[int, ...], names: list[str]) -> None:
    found = forms_of([InputTensor("x", dtype, shape)])
    assert [form.name for form in found] == names
    if names == ["fp16"]:
        assert found[0].coded["x"].size_bytes == 2 * int(np.prod(shape))


def test_a_by_pass_is_taken_where_it_is_better(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["5mbit/10ms", "wan"], catalogue=catalogue)
    problem = make_problem(cnn(), tiers, links, bypasses=[Bypass(0, 2, parse_link("500mbit/5ms"))])
    found = _named(all_baselines(problem, forms_of([IMAGE])))
    for name in ("all-cloud", "all-cloud (JPEG input)", CHAIN_CUT, TWO_TIER_CUT):
        assert found[name].plan.route == (0, 2), name
    assert found["all-edge"].plan.route == ()


def test_one_tier_has_one_baseline(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", catalogue=catalogue)
    (only,) = all_baselines(make_problem(cnn(), tiers, links), forms_of([IMAGE]))
    assert only.plan.name == "all-phone"
