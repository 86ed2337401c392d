"""Calibration: measured times are taken as they are, the rest is learned, and never for the worse."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.calibration import boundary_bytes, calibrate, calibrated_costs
from flagsplit.splitter.costs import Tier, model_costs
from flagsplit.splitter.devices import Catalogue
from flagsplit.splitter.profiles import BlockTime, Profile
from flagsplit.splitter.regression import features_of_block, predict_seconds, roofline_seconds
from flagsplit.splitter.sampling import blocks_to_measure
from flagsplit.splitter.testing import GraphBuilder, cnn, line


@pytest.fixture
def tier(catalogue: Catalogue) -> Tier:
    return Tier("edge", catalogue.device("generic-edge-cpu"))


def products(count: int, seed: int = 0) -> list[dict[str, float]]:
    """Features of random convolutions and activations."""
    rng = np.random.default_rng(seed)
    found = []
    for at in range(count):
        rows, columns, inner = (float(2 ** rng.uniform(4, 10)) for _ in range(3))
        traffic = {
            "read_bytes": 4 * rows * inner,
            "write_bytes": 4 * rows * columns,
            "weight_bytes": 4 * inner * columns,
        }
        sides = {
            "rows": rows,
            "columns": columns,
            "inner": inner,
            "window": 1.0,
            "conv.Conv": 2 * rows * columns * inner,
        }
        work = {"elementwise.Relu": 30 * rows * columns} if at % 3 == 0 else sides
        found.append({**work, **traffic, "nodes": float(1 + at % 4)})
    return found


def planted(features: dict[str, float]) -> float:
    """A law unlike the roofline: other rates, and narrow products are slow."""
    narrow = 1 + 8 / features.get("columns", 1e9)
    work = features.get("conv.Conv", 0.0) / 9e9 * narrow + features.get("elementwise.Relu", 0.0) / 2e9
    return work + 4e-6 * features["nodes"]


@pytest.mark.slow
def test_a_planted_law_is_found(tier: Tier) -> None:
    known, new = products(120), products(60, seed=1)
    said = predict_seconds(known, np.array([planted(each) for each in known]), new, tier)
    right = np.array([planted(each) for each in new])
    assert said.method.startswith("linear")
    errors = np.abs(said.seconds / right - 1)
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.2
    assert said.error < 0.1


@pytest.mark.slow
def test_the_same_again(tier: Tier) -> None:
    known, new = products(25), products(10, seed=1)
    seconds = np.array([planted(each) for each in known])
    first, second = (predict_seconds(known, seconds, new, tier) for _ in range(2))
    assert first.seconds.tolist() == second.seconds.tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_thin_data_is_never_worse_than_the_roofline(tier: Tier, count: int) -> None:
    """Where the roofline is right, nothing else is better on blocks left out, so it stands."""
    known, new = products(count), products(30, seed=1)
    seconds = np.array([roofline_seconds(each, tier) for each in known])
    said = predict_seconds(known, seconds, new, tier)
    assert said.method == "roofline"
    assert said.seconds == pytest.approx([roofline_seconds(each, tier) for each in new])


def test_two_blocks_teach_a_factor(tier: Tier) -> None:
    known, new = products(2), products(5, seed=1)
    said = predict_seconds(known, np.array([7 * roofline_seconds(each, tier) for each in known]), new, tier)
    assert said.method == "scaled roofline"
    assert said.seconds == pytest.approx([7 * roofline_seconds(each, tier) for each in new])


def test_the_roofline_is_that_of_the_costs(tier: Tier) -> None:
    graph = signed(cnn())
    wanted = model_costs(graph, [tier], []).seconds[:, 0]
    assert [roofline_seconds(features_of_block(block), tier) for block in graph.blocks] == pytest.approx(
        wanted.tolist()
    )


def signed(graph: BlockGraph) -> BlockGraph:
    """A synthetic graph with features, and signatures by what blocks cost."""
    blocks = []
    for block in graph.blocks:
        work = f"{block.flops}{block.read_bytes}{block.write_bytes}{block.weight_bytes}"
        features = {f"{name}.{block.op_types[0]}": flops for name, flops in block.flops.items()}
        blocks.append(replace(block, signature=hashlib.sha256(work.encode()).hexdigest()[:32], features=features))
    return replace(graph, blocks=tuple(blocks))


def profile_of(graph: BlockGraph, indices: list[int], seconds: float, run_s: float = 1e-5) -> Profile:
    times = {
        graph.blocks[i].signature: BlockTime(
            name=graph.blocks[i].name,
            seconds=seconds + run_s,
            added_s=seconds,
            spread=0.1,
            runs=5,
            features=features_of_block(graph.blocks[i]),
        )
        for i in indices
    }
    return Profile(
        version=1,
        basis="measured",
        device="generic-edge-cpu",
        host="test",
        target="ort",
        target_version="1",
        threads=1,
        numerics="exact",
        date="2026-01-01",
        run_s=run_s,
        boundary_s_per_byte=1e-10,
        blocks=times,
    )


def test_measured_blocks_keep_their_times(tier: Tier) -> None:
    graph = signed(cnn())
    found = calibrate(graph, tier, profile_of(graph, [0], 0.5))
    alike = [block.signature == graph.blocks[0].signature for block in graph.blocks]
    assert found.measured.tolist() == alike
    assert set(found.seconds[found.measured].tolist()) == {0.5}
    assert found.method == "roofline"
    everything = calibrate(graph, tier, profile_of(graph, list(range(len(graph.blocks))), 0.5))
    assert everything.method == ""
    assert everything.seconds.tolist() == [0.5] * len(graph.blocks)


def test_a_segment_pays_one_run_and_half_of_what_crosses(tier: Tier) -> None:
    builder = GraphBuilder("g", x=1000)
    first = builder.add("a", ["x"], 400)
    graph = signed(builder.build(builder.add("b", [first, "x"], 60)))
    assert boundary_bytes(graph, [0]) == 1000 + 400
    assert boundary_bytes(graph, [1]) == 1000 + 400 + 60
    assert boundary_bytes(graph, [0, 1]) == 1000 + 60
    found = calibrate(graph, tier, profile_of(graph, [0, 1], 0.5))
    assert found.segment_s([0, 1], 1060) == pytest.approx(1.0 + 1e-5 + 1060 * 1e-10 / 2)


def test_only_profiled_tiers_change(catalogue: Catalogue) -> None:
    tiers, links = line("generic-phone-cpu", "generic-edge-cpu", links=["wifi"], catalogue=catalogue)
    graph = signed(cnn())
    modelled = model_costs(graph, tiers, links)
    name = tiers[1].name
    costs, found = calibrated_costs(modelled, graph, tiers, {name: profile_of(graph, [0], 0.5, run_s=1.0)})
    assert set(found) == {name}
    assert costs.seconds[:, 0].tolist() == modelled.seconds[:, 0].tolist()
    assert costs.seconds[0, 1] == 0.5
    assert costs.invocation_s.tolist() == [modelled.invocation_s[0], 1.0]


def test_one_of_each_kind_is_measured_first() -> None:
    graph = signed(cnn(stages=3, depth=4))
    seconds = np.arange(len(graph.blocks), 0, -1, dtype=np.float64)
    kinds = {block.signature for block in graph.blocks}
    chosen = blocks_to_measure(graph, seconds, len(kinds) / len(graph.blocks))
    assert {graph.blocks[i].signature for i in chosen} == kinds
    more = blocks_to_measure(graph, seconds, (len(kinds) + 2) / len(graph.blocks))
    assert set(more) - set(chosen) == {1, 2} - set(chosen) or len(more) == len(chosen) + 2
    fewer = blocks_to_measure(graph, seconds, 4 / len(graph.blocks))
    assert len(fewer) == len({graph.blocks[i].signature for i in fewer}) == 4
    assert blocks_to_measure(graph, seconds, 1.0) == tuple(range(len(graph.blocks)))
    assert len(blocks_to_measure(graph, seconds, 1e-9)) == 1
