"""What comes next to a plan, and in what words its thresholds are told."""

import re

import pytest

from flagsplit.splitter.baselines import all_baselines
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.knobs import Knob
from flagsplit.splitter.pipeline import PlanningResult, plan_model
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.reasons import barred_blocks
from flagsplit.splitter.rivals import (
    breaking_sentences,
    flip_sentences,
    no_flips_because,
    rival_sentences,
    rivals,
    score_of,
)
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.testing import cnn, line, unet
from flagsplit.splitter.thresholds import BreakingPoint, Flip, Thresholds


def _plan(catalogue: Catalogue, **sla: object) -> PlanningResult:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return plan_model(unet(), tiers, links, parse_sla(sla))


@pytest.mark.slow
@pytest.mark.parametrize("sla", [{}, {"objective": {"energy": 1.0}}, {"keep_on": {"inputs": "phone"}}])
def test_rivals_are_allowed_and_no_better(catalogue: Catalogue, sla: dict[str, object]) -> None:
    result = _plan(catalogue, **sla)
    problem, chosen = result.problem, result.chosen.plan
    found = rivals(problem, result.pool, chosen, all_baselines(problem))
    assert found
    for rival in found:
        assert rival.plan.placement != chosen.placement
        assert rival.worse_by >= 0
        assert score_of(problem, rival.plan) == pytest.approx(score_of(problem, chosen) * (1 + rival.worse_by))
        allowed = problem.constraints.allowed
        assert all(allowed[block, tier] for block, tier in enumerate(rival.plan.placement))
    assert any(rival.plan.used_tiers != chosen.used_tiers for rival in found)
    sentences = rival_sentences(problem, chosen, found)
    assert sentences[0].startswith("Runner-up")


@pytest.mark.slow
def test_words_of_thresholds(catalogue: Catalogue) -> None:
    result = _plan(catalogue)
    problem, chosen = result.problem, result.chosen.plan

    def flip(knob: Knob, factor: float, exact: bool = True) -> str:
        (line,) = flip_sentences(problem, chosen, [Flip(knob, factor, (0,), (0, 1, 2), "all-phone", exact)])
        return line

    assert flip(Knob("bandwidth", "cloud", 1, 20.0), 0.155) == "cloud link below 3.1 Mbit/s (now 20): all-phone"
    assert flip(Knob("rtt", "edge", 0, 10.0), 8.0, exact=False) == (
        "edge link's round trip above about 80 ms (now 10): all-phone"
    )
    assert flip(Knob("slowdown", "edge", 1, 1.0), 0.5) == "edge more than 2 times as fast as now: all-phone"
    assert flip(Knob("price", "cloud", 2, 0.5), 2.4) == "cloud above 1.2 USD/h (now 0.5): all-phone"
    point = BreakingPoint(Knob("slowdown", "edge", 1, 1.0), 3.0, "latency_ms")
    assert breaking_sentences([point]) == ("edge more than 3 times as slow as now: this plan breaks latency_ms",)


@pytest.mark.slow
def test_flips_are_told_nearest_first(catalogue: Catalogue) -> None:
    result = _plan(catalogue)
    flips = Thresholds(result.problem, result.chosen.plan.placement).flips()
    sentences = flip_sentences(result.problem, result.chosen.plan, flips)
    assert len(sentences) == len(flips) > 1
    assert all(re.search(r": [a-z+-]+(, cut elsewhere)?$", each) for each in sentences)


def test_why_there_are_none(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    for sla, said in (
        ({"objective": {"goal": "throughput"}}, "throughput"),
        ({"mode": "prefer_on_device"}, "mode prefer_on_device"),
        ({"prefer_tiers": ["phone"]}, "preferences"),
        ({}, "up to 64 times"),
    ):
        problem = make_problem(cnn(), tiers, links, parse_sla(sla))
        assert said in no_flips_because(problem)


def test_barred_blocks_are_counted_by_operator_and_reason(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "t4", links=["wifi"], catalogue=catalogue)
    supports = {"phone": lambda block: "no pooling" if block.op_types == ("MaxPool",) else None}
    problem = make_problem(unet(), tiers, links, parse_sla({"pins": {"bottom": "phone"}}), supports)
    found = {(each.operator, each.tier): each for each in barred_blocks(problem)}
    assert found["MaxPool", "phone"].count == 4
    assert found["MaxPool", "phone"].reason == "no pooling"
    assert found["MaxPool", "phone"].example == "down0"
    assert found["Conv", "cloud"].reason == "pin 'bottom' wants phone"
