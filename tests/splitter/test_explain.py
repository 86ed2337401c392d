"""The whole pipeline and what it says about its choice."""

from typing import Any

import pytest

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.explain import baseline_table, plan_without_limits
from flagsplit.splitter.pipeline import PlanningResult, plan_model
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.testing import cnn, line, transformer, unet


def _plan(catalogue: Catalogue, graph: BlockGraph, link: str, sla: dict[str, Any], **supports: Any) -> PlanningResult:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", "t4", links=[link, "wan"], catalogue=catalogue)
    return plan_model(graph, tiers, links, parse_sla(sla), supports)


def test_do_not_split_is_an_answer_with_a_reason(catalogue: Catalogue) -> None:
    result = _plan(catalogue, cnn(), "1mbit/50ms", {})
    assert result.chosen.plan.name == "all-phone"
    assert result.reasons[0].startswith("all-phone: 16 blocks, 16 on phone;")
    assert any(line.startswith("Do not split") for line in result.reasons)
    assert any(line.startswith("all-edge would be") and "transfer takes" in line for line in result.reasons)


def test_computing_can_be_what_decides(catalogue: Catalogue) -> None:
    result = _plan(catalogue, cnn(), "1gbit/1ms", {})
    assert result.chosen.plan.used_tiers != (0,)
    assert any(line.startswith("all-phone would be") and "computing takes" in line for line in result.reasons)


def test_privacy_is_named_and_its_price_told(catalogue: Catalogue) -> None:
    result = _plan(catalogue, unet(), "wifi", {"keep_on": {"inputs": "phone"}})
    assert result.chosen.plan.placement[0] == 0
    barred = {item.plan.name: item.reason for item in result.baselines}
    assert barred["all-phone"] is None
    assert barred["all-cloud"] == "block 'enc0' cannot run there: keep_on 'inputs' wants phone"
    assert any(line.startswith("Binding: privacy (keep_on); without it all-") for line in result.reasons)
    assert plan_without_limits(result.problem).name == "all-edge"


def test_memory_and_operators_are_named(catalogue: Catalogue) -> None:
    sla = {"keep_on": {"inputs": "phone"}, "memory_mb": {"edge": 12.0}}
    reasons = _plan(catalogue, unet(), "wifi", sla).reasons
    assert any(line.startswith("Binding: memory_mb;") for line in reasons)
    no_edge = _plan(catalogue, transformer(), "wifi", {}, edge=lambda block: "no MatMul")
    assert any(line.startswith("Binding: missing operator support;") for line in no_edge.reasons)
    capped = _plan(catalogue, transformer(), "wifi", {"memory_mb": {"edge": 10.0}})
    assert any("all-edge is not allowed: memory_mb of edge would be" in line for line in capped.reasons)


def test_price_can_be_what_decides(catalogue: Catalogue) -> None:
    result = _plan(catalogue, cnn(), "wifi", {"objective": {"price": 1e4}})
    assert result.chosen.plan.name == "all-phone"
    assert any("ms faster, but the objective prefers all-phone for its price" in line for line in result.reasons)


def test_baselines_send_the_raw_input_and_fetch_the_answer(catalogue: Catalogue) -> None:
    result = _plan(catalogue, cnn(), "wifi", {})
    cloud = result.baselines[2].plan
    assert cloud.name == "all-cloud"
    assert cloud.features.up_bytes == (602112.0, 602112.0)
    assert cloud.features.down_bytes == (4000.0, 4000.0)
    assert cloud.features.up_messages == cloud.features.down_messages == (1.0, 1.0)
    table = baseline_table(result.baselines).splitlines()
    assert len(table) == 4
    assert table[0].split() == ["plan", "ms", "J", "USD/1000", "allowed"]


def test_single_tier_line(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", catalogue=catalogue)
    result = plan_model(cnn(), tiers, links)
    assert result.reasons[-1] == "Do not split: phone is the only tier."
    assert result.solution.proven
    assert result.chosen.runner_up is None


@pytest.mark.parametrize("seed_sla", [{}, {"objective": {"energy": 0.2}}, {"bounds": {"latency_ms": 70.0}}])
def test_chosen_is_the_nominal_optimum(catalogue: Catalogue, seed_sla: dict[str, Any]) -> None:
    result = _plan(catalogue, cnn(), "wifi", seed_sla)
    assert result.chosen.plan.placement == result.solution.placement
