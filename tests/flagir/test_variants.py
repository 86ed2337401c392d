"""Several plans with codecs on one graph: equal names are equal tensors, and every segment is taken out of it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.flagir.coded_graphs import CODECS, FAN, GRAPHS, place, random_cuts
from tests.flagir.models import Array, canonical, inputs_for, parse, run
from tests.flagir.test_segments import check_steps, random_placement

from flagsplit.errors import ModelError
from flagsplit.flagir import Segment, Skeleton, Step, cut_into_steps, extract, read_placement
from flagsplit.flagir.codecs import BoundaryCut, add_checks, apply_codecs, join_variant, name_what_is_lossy
from flagsplit.flagir.reads import subgraphs_of


def variant(model: ir.Model, cuts: list[BoundaryCut]) -> tuple[ir.Model, tuple[Step, ...], dict[str, str]]:
    """A placed model with codecs and names of their own, its steps, and the names of the answers."""
    made = model.clone()
    apply_codecs(made, cuts)
    add_checks(made)
    renamed = name_what_is_lossy(made)
    placement = read_placement(made, "p")
    steps = cut_into_steps(made, placement, 3)
    check_steps(made, steps, placement)
    return made, steps, renamed


def walk(model: ir.Model, steps: tuple[Step, ...], inputs: dict[str, Array], known: dict[str, Array]) -> None:
    """Run segments taken out of a model; a name that is known already must stand for the same tensor."""
    here = dict(inputs)
    for step in steps:
        proto = ir.to_proto(extract(model, step.segment))
        onnx.checker.check_model(proto)
        assert tuple(value.name for value in proto.graph.output) == step.segment.outputs
        made = run(proto, {name: here[name] for name in step.segment.inputs}, optimize=False)
        here.update(zip(step.segment.outputs, made, strict=True))
    for name, array in here.items():
        np.testing.assert_array_equal(known.setdefault(name, array), array, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_equal_names_are_equal_tensors_over_all_plans(name: str) -> None:
    rng = np.random.default_rng(len(name) * 11)
    source = canonical(GRAPHS[name]())
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    inputs = inputs_for(ir.to_proto(source))
    joined, plans = source.clone(), []
    for number in range(6):
        placed = source.clone()
        place(placed, random_placement(placed, rng, 3), 3)
        cuts = random_cuts(placed, rng) if number else []
        made, steps, renamed = variant(placed, cuts)
        reference = placed.clone()
        apply_codecs(reference, cuts)
        answers = run(ir.to_proto(reference), inputs, optimize=False)
        join_variant(joined, made)
        plans.append((steps, renamed, answers))
    known: dict[str, Array] = {}
    segments: dict[str, Segment] = {}
    for steps, renamed, answers in plans:
        walk(joined, steps, inputs, known)
        for value, array in zip(source.graph.outputs, answers, strict=True):
            output = value.name or ""
            np.testing.assert_array_equal(known[renamed.get(output, output)], array)
        for step in steps:
            assert segments.setdefault(step.segment.id, step.segment) == step.segment
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


def fan(cuts: list[BoundaryCut]) -> tuple[ir.Model, tuple[Step, ...], dict[str, str]]:
    model = canonical(parse(FAN))
    place(model, [0, 1, 1, 2, 2, 2, 1, 0], 3)
    return variant(model, cuts)


def test_only_what_the_loss_reaches_gets_another_name() -> None:
    made, _, renamed = fan([BoundaryCut("v", 0, 2, "u8")])
    names = [value.name or "" for node in made.graph for value in node.outputs]
    kept = ["v", "v.u8.check", "v.u8.payload", "v.u8.scale", "v.u8.zero_point", "v.u8.at_1", "v.u8.at_2"]
    assert sorted(name for name in names if ".after_" not in name) == sorted(kept)
    assert set(renamed) == {"p", "q"}, "v is an answer, and leaves as it was made"
    assert all(new.startswith(f"{old}.after_") for old, new in renamed.items())
    assert fan([])[2] == {}


def test_other_codecs_and_other_ways_are_other_names() -> None:
    cuts = [[BoundaryCut("v", 0, 2, codec)] for codec in CODECS]
    cuts.append([BoundaryCut("v", 0, 1, "none"), BoundaryCut("v", 0, 2, "u8")])
    cuts.append([BoundaryCut("v", 0, 2, "u8"), BoundaryCut("e", 1, 0, "u8")])
    answers = [fan(each)[2] for each in cuts]
    far_only, twice, once = answers[-2], answers[-1], answers[CODECS.index("u8")]
    assert len({names["q"] for names in answers}) == len(CODECS) + 1
    assert far_only == {"q": once["q"]}, "it decodes the same on the way to q, and p is exact"
    assert twice["p"] == once["p"]


def test_a_segment_that_no_loss_reaches_is_that_of_every_plan() -> None:
    plain, lossy = fan([])[1], fan([BoundaryCut("e", 1, 0, "u8")])[1]
    assert [step.segment.id for step in plain][:3] == [step.segment.id for step in lossy][:3]
    assert plain[3].segment.id != lossy[3].segment.id


def test_what_is_in_a_body_gets_another_name_too() -> None:
    source = canonical(
        parse("""g (float[4] x) => (float[4] y) <int64 n = {3}, bool t = {1}> {
            h = Tanh (x)
            y = Loop (n, t, h) <body = b (int64 i, bool k, float[4] s) => (bool k2, float[4] s2) {
                k2 = Identity (k)
                s2 = If (k) <then_branch = p () => (float[4] u) { u = Add (s, h) },
                             else_branch = q () => (float[4] v) { v = Neg (s) }> }> }""")
    )
    place(source, [0, 1], 2)
    made, _, _ = variant(source, [BoundaryCut("h", 0, 1, "u8")])
    joined = source.clone()
    join_variant(joined, made)
    nodes = list(ir.traversal.RecursiveGraphIterator(joined.graph))
    bodies = [body for node in nodes for body in subgraphs_of(node)]
    values = [value for node in nodes for value in node.outputs] + [value for body in bodies for value in body.inputs]
    assert len(bodies) == 6
    assert len({value.name for value in values}) == len(values)
    Skeleton(joined).types({})


def test_a_name_that_is_taken() -> None:
    def model(spare: str) -> ir.Model:
        made = canonical(parse("g (float[2] x) => (float[2] y, float[2] z) { h = Tanh(x) y = Neg(h) z = Abs(x) }"))
        place(made, [0, 1, 0], 2)
        made.graph.outputs[1].name = spare
        apply_codecs(made, [BoundaryCut("h", 0, 1, "u8")])
        return made

    wanted = name_what_is_lossy(model("z"))["y"]
    with pytest.raises(ModelError, match=f"value '{wanted}' has a name that flagsplit gives"):
        name_what_is_lossy(model(wanted))


def test_the_same_nodes_with_other_outputs_are_another_segment() -> None:
    """Whether a value that is encoded leaves as it is as well depends on who reads it, and that on the plan."""
    text = "g (float[2] x) => (float[2] y) { v = Tanh(x) a = Neg(v) b = Exp(a) y = Mul(b, v) }"
    firsts = []
    for placement in ([0, 1, 1, 0], [0, 1, 1, 1]):
        model = canonical(parse(text))
        place(model, placement, 2)
        firsts.append(variant(model, [BoundaryCut("v", 0, 1, "fp16")])[1][0].segment)
    assert firsts[0].nodes == firsts[1].nodes == (firsts[0].nodes[0], "v.fp16.encode")
    assert firsts[0].outputs == ("v", "v.fp16.payload")
    assert firsts[1].outputs == ("v.fp16.payload",)
    assert firsts[0].id != firsts[1].id
