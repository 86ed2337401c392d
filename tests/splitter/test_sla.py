"""The SLA: unknown fields and ranges are refused, and contradictions with a graph are named."""

from typing import Any

import pytest

from flagsplit.errors import PolicyError
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import SLA, parse_sla
from flagsplit.splitter.testing import GraphBuilder, cnn, line


def test_defaults_and_schema() -> None:
    assert parse_sla("{}") == SLA()
    schema = SLA.model_json_schema()
    assert set(schema["properties"]) == set(SLA.model_fields)
    assert all("description" in entry or "$ref" in entry for entry in schema["properties"].values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON"),
        ('{"latency": 3}', "latency"),
        ('{"bounds": {"latency_ms": 0}}', "bounds.latency_ms"),
        ('{"bounds": {"latency_ms": NaN}}', "bounds.latency_ms"),
        ('{"bounds": {"latency_ms": true}}', "bounds.latency_ms: Input should be a valid number"),
        ('{"memory_mb": {"phone": "5"}}', "memory_mb.phone: Input should be a valid number"),
        ('{"streams": {"phone": true}}', "streams.phone: Input should be a valid integer"),
        ('{"memory_mb": {"phone": -1}}', "memory_mb.phone"),
        ('{"objective": {"latency": 0}}', "all weights are 0"),
        ('{"energy_scope": "phone"}', "energy_scope"),
    ],
)
def test_bad_sla_is_one_line(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_sla(text, "my.json")
    assert str(caught.value).startswith("my.json: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def _problem(catalogue: Catalogue, sla: dict[str, Any], **supports: Any) -> Problem:
    tiers, links = line("pixel8", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(cnn(2, 2), tiers, links, parse_sla(sla), supports)


@pytest.mark.parametrize(
    ("sla", "said"),
    [
        ({"pins": {"conv*": "fog"}}, "pins: there is no tier 'fog': the line is phone, edge, cloud"),
        ({"pins": {"deconv*": "edge"}}, "matches no node"),
        ({"keep_on": {"imago": "phone"}}, "'imago' is not a value"),
        ({"keep_on": {"inputs": "edge"}}, "inputs start on phone"),
        ({"keep_on": {"fc_out": "cloud"}}, "outputs end on phone"),
        ({"keep_on": {"inputs": "phone"}, "forbid_tiers": ["phone"]}, "forbid_tiers"),
        ({"keep_on": {"inputs": "phone"}, "pins": {"conv0_0": "edge"}}, "pin 'conv0_0' wants edge"),
        ({"forbid_tiers": ["phone", "edge", "cloud"]}, "has no tier left"),
    ],
)
def test_contradictions(catalogue: Catalogue, sla: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _problem(catalogue, sla)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_become_the_table(catalogue: Catalogue) -> None:
    problem = _problem(
        catalogue,
        {"keep_on": {"inputs": "phone", "conv0_1_out": "edge"}, "pins": {"Gemm": "cloud"}},
        cloud=lambda block: "no" if block.name == "conv1_1" else None,
    )
    options = {
        block.name: [tier for tier, ok in zip(problem.tier_names, row, strict=True) if ok]
        for block, row in zip(problem.graph.blocks, problem.constraints.allowed, strict=True)
    }
    assert options == {
        "conv0_0": ["phone"],
        "conv0_1": ["edge"],
        "conv1_0": ["edge"],
        "conv1_1": ["phone", "edge"],
        "fc": ["cloud"],
    }
    assert problem.constraints.reasons[3, 2] == "no"


def test_malformed_lines(catalogue: Catalogue) -> None:
    tiers, links = line("pixel8", "t4", links=["wifi"], catalogue=catalogue)
    with pytest.raises(PolicyError, match="expected 1 for 2 tiers"):
        make_problem(cnn(), tiers, [])
    with pytest.raises(PolicyError, match="different names"):
        make_problem(cnn(), [tiers[0], tiers[0]], links)
    with pytest.raises(PolicyError, match="no blocks"):
        make_problem(GraphBuilder("empty", x=4).build("x"), tiers, links)
    graph = GraphBuilder("deaf", x=4)
    graph.add("a", ["x"], 4)
    with pytest.raises(PolicyError, match="no outputs"):
        make_problem(graph.build(), tiers, links)
    with pytest.raises(PolicyError, match="expected 5 entries"):
        _problem(catalogue, {}, edge=[None])
