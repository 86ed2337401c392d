"""Atoms: every segment is a chain of them, none is divided, each node is held once, and chains compute the same."""

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from tests.flagir.models import Array, canonical, inputs_for, parse, random_model, run, with_weights

from flagsplit.flagir import Segment, Step, cut_into_steps, extract
from flagsplit.flagir.atoms import atoms_of, weight_bytes_of
from flagsplit.flagir.reads import activations_read
from flagsplit.flagir.segments import segment_of


def _placement(model: ir.Model, rng: np.random.Generator, tiers: int) -> dict[str, int]:
    """Runs of nodes on one tier, with a few strays."""
    found, tier = {}, 0
    for node in model.graph:
        if rng.random() < 0.3:
            tier = int(rng.integers(tiers))
        found[node.name or ""] = int(rng.integers(tiers)) if rng.random() < 0.05 else tier
    return found


def _plans(model: ir.Model, seed: int, plans: int) -> list[tuple[Step, ...]]:
    """Random plans of three tiers, and one that runs everything on tier 1."""
    rng = np.random.default_rng(seed)
    placements = [_placement(model, rng, 3) for _ in range(plans)]
    return [cut_into_steps(model, each, 3) for each in ({node.name or "": 1 for node in model.graph}, *placements)]


def _segments(plans: list[tuple[Step, ...]]) -> list[Segment]:
    """The distinct segments of tier 1."""
    return list({step.segment.id: step.segment for steps in plans for step in steps if step.tier == 1}.values())


def _is_convex(model: ir.Model, names: set[str]) -> bool:
    reached: set[ir.Node] = set()
    for node in model.graph:
        makers = {value.producer() for value in activations_read(node)}
        if any(maker is not None and (maker in reached or maker.name in names) for maker in makers):
            if node.name not in names:
                reached.add(node)
            elif any(maker in reached for maker in makers):
                return False
    return True


@pytest.mark.parametrize("seed", range(8))
def test_chains_of_random_plans(seed: int) -> None:
    model = canonical(random_model(seed))
    segments = _segments(_plans(model, seed, plans=4))
    chains = atoms_of(model, segments, {})
    atoms = {atom.id: atom for chain in chains.values() for atom in chain}
    for segment in segments:
        chain = chains[segment.id]
        assert sorted(name for atom in chain for name in atom.nodes) == sorted(segment.nodes)
    for atom in atoms.values():
        assert _is_convex(model, set(atom.nodes))
    for one, other in itertools.combinations(atoms.values(), 2):
        assert set(one.nodes).isdisjoint(other.nodes)


def _run_chain(model: ir.Model, chain: Sequence[Segment], known: dict[str, Array]) -> dict[str, Array]:
    for atom in chain:
        feed = {name: known[name] for name in atom.inputs}
        known |= dict(zip(atom.outputs, run(ir.to_proto(extract(model, atom)), feed, optimize=False), strict=True))
    return known


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_computes_what_its_segment_does(seed: int) -> None:
    proto = random_model(seed)
    model = canonical(proto)
    plans = _plans(model, seed, plans=3)
    chains = atoms_of(model, _segments(plans), {})
    for steps in plans:
        whole, parts = dict(inputs_for(proto)), dict(inputs_for(proto))
        for step in steps:
            whole = _run_chain(model, (step.segment,), whole)
            parts = _run_chain(model, chains[step.segment.id] if step.tier == 1 else (step.segment,), parts)
            for name in step.segment.outputs:
                np.testing.assert_array_equal(parts[name], whole[name])


LINE = """g (float[4] x) => (float[4] y) {
  a = Neg(x)
  b = Exp(a)
  c = Tanh(b)
  y = Abs(c)
}"""


def _of(model: ir.Model, outputs: str) -> Segment:
    """The segment of the nodes that make these values."""
    return segment_of(model, {node.name or "" for node in model.graph if (node.outputs[0].name or "") in outputs})


def test_what_no_plan_divides_stays_whole() -> None:
    model = canonical(parse(LINE))
    whole, head, tail = _of(model, "abcy"), _of(model, "ab"), _of(model, "cy")
    chains = atoms_of(model, [whole, head, tail], {})
    assert [len(chains[segment.id]) for segment in (whole, head, tail)] == [2, 1, 1]
    assert chains[head.id] == (head,)
    assert [atom.nodes for atom in chains[whole.id]] == [head.nodes, tail.nodes]
    alone = atoms_of(model, [whole], {})
    assert alone == {whole.id: (whole,)}


def test_a_unit_is_never_divided_and_a_hole_makes_two_atoms() -> None:
    model = canonical(parse(LINE))
    whole, middle = _of(model, "abcy"), _of(model, "bc")
    chains = atoms_of(model, [whole, middle], dict.fromkeys(middle.nodes, "unit"))
    assert [len(atom.nodes) for atom in chains[whole.id]] == [1, 2, 1]
    assert set(chains[middle.id][0].nodes) == set(middle.nodes)


def test_weights_are_counted_once_for_each_segment() -> None:
    proto = parse("g (float[100] x, float[100] k) => (float[100] y) { a = Mul(x, k)  y = Add(a, k) }")
    del proto.graph.input[1]
    model = canonical(with_weights(proto, k=(100,)))
    whole, half = _of(model, "ay"), _of(model, "a")
    assert weight_bytes_of(model, [whole, half]) == {whole.id: 400, half.id: 400}
