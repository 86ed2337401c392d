"""Drawings: well-formed, self-contained, the same bytes every time, and in time with the prediction."""

import itertools
import random
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from flagsplit.apps.planning import PlanReport
from flagsplit.apps.report.figures import by_link, by_tier, slowest_stage, split_ms, totals
from flagsplit.apps.report.lanes import crossings_of, runs_of
from flagsplit.apps.report.plan_svg import draw_plan
from flagsplit.apps.report.svg import shortened, wrapped
from flagsplit.apps.report.timeline import serial_spans
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.baselines import all_baselines
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.links import parse_link
from flagsplit.splitter.pipeline import plan_problem
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import Bypass, Problem, make_problem
from flagsplit.splitter.routes import routes_of
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.testing import cnn, line, random_problem, transformer, unet


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue()


def _coded(graph: BlockGraph) -> BlockGraph:
    """With codecs for all tensors but the answer."""
    values = [
        value
        if value.is_output
        else replace(value, codec_bytes={"fp16": value.size_bytes // 2, "u8": value.size_bytes // 4})
        for value in graph.values
    ]
    return replace(graph, values=tuple(values))


def _problem(catalogue: Catalogue, graph: BlockGraph, link: str = "wifi", **sla: Any) -> Problem:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=[link, "wan"], catalogue=catalogue)
    return make_problem(graph, tiers, links, parse_sla(sla), bypasses=[Bypass(0, 2, parse_link("20mbit/30ms"))])


def _report(problem: Problem) -> PlanReport:
    return PlanReport("a model", plan_problem(problem), all_baselines(problem), (), (), (), (), None, None, (), {})


@pytest.mark.parametrize("seed", range(40))
def test_spans_add_up_to_the_predicted_latency(catalogue: Catalogue, seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, catalogue)
    problem = replace(problem, graph=_coded(problem.graph)).with_sla(
        parse_sla({"accuracy": {"every_cut": {"min_snr_db": 0}}})
    )
    placement = [rng.randrange(len(problem.tiers)) for _ in problem.graph.blocks]
    plan = make_plan(problem, placement, "any")
    spans = serial_spans(problem, plan)
    assert spans[-1].end_s == pytest.approx(plan.latency_s(problem.nominal), rel=1e-9)
    for before, after in itertools.pairwise(spans):
        assert after.start_s == before.end_s
    for k, tier in enumerate(problem.tier_names):
        busy = sum(span.end_s - span.start_s for span in spans if span.row == tier)
        assert busy == pytest.approx(plan.features.tier_seconds[k], rel=1e-9)


def test_spans_take_by_passes(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, cnn())
    direct = next(route for route in routes_of(problem) if route.tiers == (0, 2))
    plan = make_plan(problem, [0] * 4 + [2] * 12, "direct", route=direct)
    spans = serial_spans(problem, plan)
    assert {span.row for span in spans} == {"phone", "phone → cloud", "cloud → phone", "cloud"}
    assert spans[-1].end_s == pytest.approx(plan.latency_s(problem.nominal), rel=1e-9)
    (link,) = [each for each in by_link(problem, plan) if each.messages]
    assert link.link == "phone - cloud (by-pass)"


def test_figures_add_up(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, unet())
    plan = make_plan(problem, [0, 0, 1, 1, *[2] * 5, 1, 1, 0, 0, 0][: len(problem.graph.blocks)], "there and back")
    tiers, links = by_tier(problem, plan), by_link(problem, plan)
    whole = sum(each.busy_ms for each in tiers) + sum(each.up_ms + each.down_ms for each in links)
    assert whole == pytest.approx(plan.latency_s(problem.nominal) * 1e3)
    assert sum(split_ms(problem, plan)) == pytest.approx(whole)
    assert sum(each.price_per_1k_usd for each in tiers) == pytest.approx(plan.predicted.price_per_1k_usd)
    assert sum(each.carbon_per_1k_g for each in tiers) == pytest.approx(plan.predicted.carbon_per_1k_g)
    assert totals(problem, plan)[1].name == f"throughput, limited by {slowest_stage(problem, plan)}"
    assert totals(problem, plan)[1].value == pytest.approx(1 / plan.predicted.bottleneck_s)


@pytest.mark.slow
@pytest.mark.parametrize("sla", [{}, {"keep_on": {"inputs": "phone"}}, {"forbid_tiers": ["phone"]}])
def test_a_drawing_is_one_self_contained_file(catalogue: Catalogue, sla: dict[str, Any]) -> None:
    report = _report(_problem(catalogue, unet(), **sla))
    text = draw_plan(report)
    assert text == draw_plan(report)
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    for word in ("<script", "href", "@import", "url(", "@font-face"):
        assert word not in text
    shown = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"a model: {report.plan.name}, {report.plan.predicted.latency_s * 1e3:.4g} ms (modelled)" in shown
    assert {"phone", "edge", "cloud", "best two-tier cut (DADS)"} <= set(shown)
    assert not any(re.search(r"nan|inf", value) for value in re.findall(r'="([^"]*)"', text))


@pytest.mark.slow
def test_names_are_escaped(catalogue: Catalogue) -> None:
    graph = cnn(1, 2)
    blocks = tuple(replace(block, name=f'<script>"{block.index}"&') for block in graph.blocks)
    report = replace(_report(_problem(catalogue, replace(graph, blocks=blocks), "1mbit/90ms")), name="<b>&")
    text = draw_plan(report)
    ET.fromstring(text)
    assert "<script" not in text
    assert "&lt;b&gt;&amp;" in text


def _plan(problem: Problem, placement: list[int]) -> Plan:
    return make_plan(problem, placement, "any")


def test_many_blocks_become_few_runs(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, transformer(layers=100))
    count = len(problem.graph.blocks)
    plan = _plan(problem, [0] * 50 + [2] * (count - 50))
    runs = runs_of(problem, plan)
    assert len(runs) <= 60
    assert [(run.first, run.last) for run in runs] == [
        (0 if i == 0 else runs[i - 1].last + 1, run.last) for i, run in enumerate(runs)
    ]
    assert runs[-1].last == count - 1
    for run in runs:
        assert set(plan.placement[run.first : run.last + 1]) == {run.tier}
    busy = sum(float(problem.costs.seconds[i, k]) for i, k in enumerate(plan.placement))
    assert sum(run.seconds for run in runs) == pytest.approx(busy)


def test_crossings_are_the_cuts(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, unet())
    rng = np.random.default_rng(1)
    plan = _plan(problem, [int(k) for k in rng.integers(0, 3, len(problem.graph.blocks))])
    found = {
        (value, tier)
        for each in crossings_of(problem, plan, runs_of(problem, plan))
        for value in each.values
        for tier in [each.to_tier]
    }
    assert found == {(cut.value, tier) for cut in plan.cuts for tier in cut.receivers}


def test_texts_fit() -> None:
    assert shortened("abc", 100) == "abc"
    assert shortened("abcdefghijkl", 50) == "abcdef…"
    assert shortened("abcdefghijkl", 10) == ""
    assert wrapped("one two three", 50) == ["one two", "three"]
