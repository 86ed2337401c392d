"""Where blocks may run: privacy by depth against all paths, and contradictions that name the rule and the tier."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockGraph
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.testing import GraphBuilder, cnn, line, placements, random_graph


def _problem(catalogue: Catalogue, graph: BlockGraph, sla: dict[str, Any], **supports: Any) -> Problem:
    tiers, links = line("pixel8", "generic-edge-cpu", "t4", links=["wifi", "wan"], catalogue=catalogue)
    return make_problem(graph, tiers, links, parse_sla(sla), supports)


def _ways(graph: BlockGraph, block: int) -> Iterator[int]:
    """How many blocks each way from a graph input has been through when its end reads; nothing without inputs."""
    for value in graph.values:
        if block in value.consumers:
            if value.producer == GRAPH_INPUT:
                yield 0
            else:
                yield from (count + 1 for count in _ways(graph, value.producer))


def test_min_blocks_deep_counts_every_path(catalogue: Catalogue) -> None:
    confined = free = 0
    for seed in range(60):
        rng = random.Random(seed)
        graph, depth = random_graph(rng, rng.randint(1, 7)), rng.randint(0, 4)
        problem = _problem(catalogue, graph, {"min_blocks_deep": depth})
        for block in graph.blocks:
            shallow = any(count < depth for count in _ways(graph, block.index))
            assert problem.constraints.allowed[block.index].tolist() == [True, not shallow, not shallow], seed
            confined, free = confined + shallow, free + (not shallow)
    assert min(confined, free) > 50


def test_nothing_shallow_leaves(catalogue: Catalogue) -> None:
    graph = GraphBuilder("skip", x=8)
    deep = graph.add("b", [graph.add("a", ["x"], 8)], 8)
    graph.add("late", [deep, "x"], 8)
    after = graph.add("after", ["late_out"], 8)
    problem = _problem(catalogue, graph.build(after), {"min_blocks_deep": 2})
    # `late` reads the input itself, so it stays; what it makes has been through one block only.
    assert problem.constraints.allowed[:, 1].tolist() == [False, False, False, False]
    assert "min_blocks_deep 2 keeps it on phone" in problem.constraints.reasons[2, 1]
    assert _problem(catalogue, graph.build(after), {"min_blocks_deep": 1}).constraints.allowed[:, 2].tolist() == [
        False,
        True,
        False,
        True,
    ]


def test_keep_on_holds_in_every_placement(catalogue: Catalogue) -> None:
    tried = 0
    for seed in range(80):
        rng = random.Random(seed)
        graph = random_graph(rng, rng.randint(2, 5))
        value = rng.choice(graph.values)
        inner = value.producer != GRAPH_INPUT and not value.is_output
        tier = rng.randrange(3) if inner else 0
        name = ("phone", "edge", "cloud")[tier]
        problem = _problem(catalogue, graph, {"keep_on": {value.name: name}})
        for placement in placements(problem):
            ends = [*value.consumers] + ([] if value.producer == GRAPH_INPUT else [value.producer])
            assert {placement[end] for end in ends} <= {tier}, seed
            tried += 1
    assert tried > 500


def test_pins_by_node_pattern_and_operator(catalogue: Catalogue) -> None:
    problem = _problem(catalogue, cnn(2, 2), {"pins": {"conv0_*": "edge", "Gemm": "cloud", "conv1_?": "phone"}})
    assert problem.constraints.allowed.argmax(axis=1).tolist() == [1, 1, 0, 0, 2]
    assert problem.constraints.allowed.sum() == 5
    assert problem.constraints.reasons[0, 2] == "pin 'conv0_*' wants edge"


@pytest.mark.parametrize(
    ("sla", "supports", "said"),
    [
        ({"keep_on": {"inputs": "phone"}}, {"phone": "Conv"}, ("keep_on 'inputs' wants phone", "not phone: no Conv")),
        ({"min_blocks_deep": 1}, {"phone": "Conv"}, ("min_blocks_deep 1 keeps it on phone", "not phone: no Conv")),
        ({"pins": {"fc": "edge"}}, {"edge": "Gemm"}, ("pin 'fc' wants edge", "not edge: no Gemm")),
        (
            {"pins": {"fc": "edge"}, "forbid_tiers": ["edge"]},
            {},
            ("pin 'fc' wants edge", "not edge: forbid_tiers has 'edge'"),
        ),
        (
            {"pins": {"fc": "cloud"}, "forbid_vendors": ["nvidia"]},
            {},
            ("pin 'fc' wants cloud", "not cloud: forbid_vendors has 'NVIDIA'"),
        ),
        (
            {"mode": "only_on_device", "forbid_vendors": ["Google"]},
            {},
            ("mode only_on_device", "not phone: forbid_vendors has 'Google'"),
        ),
        ({"mode": "only_in_cloud"}, {"cloud": "Gemm"}, ("mode only_in_cloud", "not cloud: no Gemm")),
        ({"keep_on": {"conv0_0_out": "edge", "conv0_1_out": "cloud"}}, {}, ("conv0_1", "wants edge", "wants cloud")),
    ],
)
def test_contradictions_name_the_rule_and_the_tier(
    catalogue: Catalogue, sla: dict[str, Any], supports: dict[str, str], said: tuple[str, ...]
) -> None:
    made = {tier: (lambda block, op=op: f"no {op}" if op in block.op_types else None) for tier, op in supports.items()}
    with pytest.raises(PolicyError) as caught:
        _problem(catalogue, cnn(2, 2), sla, **made)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("sla", "field"),
    [
        ({"use_tiers": ["fog"]}, "use_tiers: there is no tier 'fog'"),
        ({"forbid_tiers": ["fog"]}, "forbid_tiers: there is no tier 'fog'"),
        ({"power_w": {"fog": 1}, "requests_per_s": 1}, "power_w: there is no tier 'fog'"),
        ({"memory_mb": {"fog": 1}}, "memory_mb: there is no tier 'fog'"),
        ({"keep_on": {"image": "fog"}}, "keep_on: there is no tier 'fog'"),
        ({"accuracy": {"cuts": {"nothing*": {"min_snr_db": 3}}}}, "accuracy.cuts: 'nothing*' matches no value"),
        ({"accuracy": {"every_cut": {"codecs": ["mp3"]}}}, "accuracy.every_cut.codecs: expected none, fp16"),
    ],
)
def test_names_that_do_not_exist(catalogue: Catalogue, sla: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _problem(catalogue, cnn(2, 2), sla)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"power_w": {"phone": 1}}', "power_w needs requests_per_s"),
        ('{"use_tiers": ["a"], "forbid_tiers": ["a"]}', "use_tiers and forbid_tiers both name 'a'"),
        ('{"prefer_vendors": ["a"], "forbid_vendors": ["a"]}', "forbid_vendors and prefer_vendors both name 'a'"),
        ('{"prefer_within": -1}', "prefer_within"),
        ('{"requests_per_s": 0}', "requests_per_s"),
        ('{"mode": "in_cloud"}', "mode"),
        ('{"min_blocks_deep": -1}', "min_blocks_deep"),
        ('{"accuracy": {"every_cut": {}}}', "accuracy.every_cut"),
        ('{"objective": {"carbon": -1}}', "objective.carbon"),
        ('{"bounds": {"a\\nb": 1}}', "bounds.a"),
    ],
)
def test_rules_that_do_not_fit_together(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_sla(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
