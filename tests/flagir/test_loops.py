"""What loops cost, against counts of what runs and against sums by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.flagir.models import canonical, parse
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.flagir import Block, Skeleton, block_graph, canonicalize
from flagsplit.flagir.liveness import peak_activations
from flagsplit.flagir.loops import EXPECTED_TRIPS, say_trips, trips_of
from flagsplit.flagir.programs.link import link

WIDTH, HEADS, PROMPT, FRAMES = 8, 2, 3, 5
HEAD = WIDTH // HEADS
DECODER = f"""decoder (float[1, {FRAMES}, {WIDTH}] hidden, float[1, {PROMPT}, {WIDTH}] past{{more}})
    => (float[1, 1, {WIDTH}] y)
    <bool go = {{{{1}}}}{{constant}}, float[1, 1, {WIDTH}] start = {{{{{", ".join(["0.5"] * WIDTH)}}}}},
     float[{WIDTH}, {WIDTH}] q = {{{{{", ".join(["0.1"] * WIDTH * WIDTH)}}}}},
     float[{WIDTH}, {WIDTH}] c = {{{{{", ".join(["0.2"] * WIDTH * WIDTH)}}}}}> {{{{
    cross = MatMul (hidden, c)
    y, all = Loop (n, go, start, past) <body = b (int64 i, bool k, float[1, 1, {WIDTH}] x, float[1, P, {WIDTH}] kv)
        => (bool k2, float[1, 1, {WIDTH}] x2, float[1, P2, {WIDTH}] kv2) {{{{
        k2 = Identity (k)
        row = MatMul (x, q)
        kv2 = Concat <axis = 1> (kv, row)
        kt = Transpose <perm = [0, 2, 1]> (kv2)
        scores = MatMul (row, kt)
        own = MatMul (scores, kv2)
        ct = Transpose <perm = [0, 2, 1]> (cross)
        far = MatMul (own, ct)
        x2 = MatMul (far, cross)
    }}}}>
}}}}"""


def decoder(trips: int | None) -> ir.Model:
    """A decoder of one head and one weight; its number of trips is constant or given."""
    text = DECODER.format(
        more="" if trips is not None else ", int64 n", constant=f", int64 n = {{{trips}}}" if trips is not None else ""
    )
    return canonical(parse(text, opset=21))


def block_of(model: ir.Model) -> Block:
    """The block with the loop."""
    skeleton = Skeleton(model)
    return next(block for block in block_graph(model, {}, skeleton).blocks if block.loops)


def counted(model: ir.Model, **more: Any) -> float:
    """Operations of all products that a run makes."""
    total = 0.0

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Any, b: Any) -> Any:
            nonlocal total
            made = np.matmul(a, b)
            total += 2.0 * made.size * a.shape[-1]
            return (made,)

    inputs = {name: np.zeros((1, n, WIDTH), np.float32) for name, n in (("hidden", FRAMES), ("past", PROMPT))}
    wanted = {value.name for value in model.graph.inputs}
    given = {name: array for name, array in (inputs | more).items() if name in wanted}
    ReferenceEvaluator(ir.to_proto(model), new_ops=[MatMul]).run(None, given)
    return total


@pytest.mark.parametrize("trips", [1, 2, 7])
def test_products_are_counted_as_they_run(trips: int) -> None:
    model = decoder(trips)
    blocks = block_graph(model, {}).blocks
    assert sum(block.flops.get("matmul", 0.0) for block in blocks) == counted(model)


def test_a_loop_of_open_length_counts_as_often_as_it_is_said_to_run() -> None:
    model = decoder(None)
    assert block_of(model).loops[0].basis == "assumed"
    assert say_trips(model, 9) == 1
    loop = block_of(model)
    assert (loop.loops[0].trips, loop.loops[0].basis) == (9, "said")
    prefill = 2 * FRAMES * WIDTH * WIDTH
    assert loop.flops["matmul"] + prefill == counted(model, n=np.int64(9))


def test_what_is_said_outlives_the_canonical_form_and_wins_over_the_most() -> None:
    model = ir.from_proto(parse(DECODER.format(more="", constant=", int64 n = {448}"), opset=21))
    assert say_trips(model, 12) == 1
    model.graph.node(1).metadata_props["note"] = "dropped"
    canonicalize(model)
    (node,) = [node for node in model.graph if node.op_type == "Loop"]
    assert dict(node.metadata_props) == {EXPECTED_TRIPS: "12"}
    assert trips_of(node).count == 12


@pytest.mark.parametrize("said", ["0", "-3", "many", "1.5", "9" * 12, ""])
def test_a_number_of_trips_that_is_none_is_not_believed(said: str) -> None:
    model = decoder(4)
    (node,) = [node for node in model.graph if node.op_type == "Loop"]
    node.metadata_props[EXPECTED_TRIPS] = said
    assert trips_of(node).count == 4


def test_weights_cache_and_captured_values_move_once_for_each_trip() -> None:
    trips = 7
    loop = (block := block_of(decoder(trips))).loops[0]
    row, weights = 4 * WIDTH, 4 * WIDTH * WIDTH
    assert loop.weight_bytes == weights
    assert block.touched_weight_bytes == trips * weights
    assert loop.captured_bytes == FRAMES * row
    assert loop.state_bytes == row + (PROMPT + 1) * row  # the row that goes round, and the cache
    assert loop.growth_bytes == row
    assert loop.last_state_bytes == row + (PROMPT + trips) * row
    read = sum(row + (PROMPT + trip) * row + FRAMES * row for trip in range(trips))
    assert loop.traffic_bytes == read + trips * row
    assert loop.launches == 5


def test_what_a_trip_holds_beside_its_state() -> None:
    trips = 7
    loop = block_of(decoder(trips)).loops[0]
    length = PROMPT + trips
    # own scores beside the transposed cache and the row, else the transposed cross values beside two rows
    row = 4 * WIDTH
    assert loop.scratch_bytes == max(row + length * row + 4 * length, row + 4 * FRAMES + FRAMES * row)


def test_the_peak_of_a_loop_is_that_of_its_last_trip() -> None:
    short, long = (peak_activations(model, Skeleton(model).types({})) for model in (decoder(1), decoder(101)))
    row = 4 * WIDTH
    assert long.size_bytes - short.size_bytes >= 2 * 100 * row  # the cache before and after the trip


def test_a_state_that_does_not_grow_is_counted_once() -> None:
    text = """g (float[4] x) => (float[4] y) <int64 n = {5}, bool t = {1}> {
        y = Loop (n, t, x) <body = b (int64 i, bool k, float[4] s) => (bool k2, float[4] s2) {
            k2 = Identity (k) s2 = Add (s, x) }> }"""
    block = block_of(canonical(parse(text, opset=21)))
    loop = block.loops[0]
    assert (loop.state_bytes, loop.growth_bytes, loop.captured_bytes) == (16, 0, 0)
    assert loop.traffic_bytes == 5 * 16
    assert block.flops == {"elementwise": 5 * 4}


def test_a_loop_keeps_with_its_first_trip() -> None:
    """Nodes that read the loop's weights before it are the same trip unrolled; apart, weights would be held twice."""
    weight = f"float[40, 40] w = {{{', '.join(['0.1'] * 1600)}}}, float[40, 40] e = {{{', '.join(['0.2'] * 1600)}}}"
    text = f"""g (float[4, 40] x) => (float[4, 40] y) <int64 n = {{5}}, bool t = {{1}}, {weight}> {{
        hidden = MatMul (x, e)
        first = MatMul (hidden, w)
        between = MatMul (first, e)
        y = Loop (n, t, between) <body = b (int64 i, bool k, float[4, 40] s) => (bool k2, float[4, 40] s2) {{
            k2 = Identity (k) s2 = MatMul (s, w) }}> }}"""
    blocks = block_graph(canonical(parse(text, opset=21)), {}).blocks
    assert [block.op_types for block in blocks] == [("MatMul",), ("MatMul", "MatMul", "Loop")]
    assert blocks[1].touched_weight_bytes == (1 + 1 + 5) * 6400


@pytest.mark.parametrize("trips", [1, 2, 3, 9])
def test_a_first_trip_that_takes_more_is_counted_as_what_it_is(trips: int) -> None:
    """As a decoder's, which takes the prompt: it makes the cache that the others make longer by one."""
    text = f"""g (float[1, 6, 8] prompt) => (float[1, 1, 8] y)
        <int64 n = {{{trips}}}, bool t = {{1}}, int64[1] last = {{-1}}, int64[1] end = {{100}}, int64[1] axis = {{1}},
         float[8, 8] w = {{{", ".join(["0.01"] * 64)}}}, float[1, 0, 8] none = {{}}> {{
        rows, cache = Loop (n, t, prompt, none)
            <body = b (int64 i, bool k, float[1, C, 8] x, float[1, P, 8] kv)
                => (bool k2, float[1, 1, 8] x2, float[1, P2, 8] kv2) {{
            k2 = Identity (k)
            made = MatMul (x, w)
            kv2 = Concat <axis = 1> (kv, made)
            kt = Transpose <perm = [0, 2, 1]> (kv2)
            scores = MatMul (made, kt)
            own = MatMul (scores, kv2)
            x2 = Slice (own, last, end, axis)
        }}>
        y = Slice (rows, last, end, axis)
    }}"""
    model = canonical(parse(text, opset=21))
    loop = block_of(model)
    assert loop.flops["matmul"] == counted(model, prompt=np.zeros((1, 6, 8), np.float32))
    cache = 6 + trips - 1
    assert loop.loops[0].last_state_bytes == 32 * (1 + cache)
    assert loop.touched_weight_bytes == trips * (256 + 3 * 8) + 3 * 8  # and what reads the end of it


@pytest.mark.parametrize("family", [oracle.whisper_like, oracle.moonshine_like])
def test_the_loop_of_a_linked_program(family: Callable[[np.random.Generator], oracle.Made]) -> None:
    """Its masks and positions are computed from the sizes of its cache."""
    made = family(np.random.default_rng(3))
    program = program_of(made, [1, 4, 6])
    model = link(program, 20)
    assert say_trips(model, 9) == 1
    facts, skeleton = program.facts, Skeleton(model)
    dims = dict.fromkeys(skeleton.symbols, 4000 if facts.input == "audio" else 64)
    (loop,) = next(block for block in block_graph(model, dims, skeleton).blocks if block.loops).loops
    of_token = 2 * 4 * facts.layers * facts.kv_heads * facts.head_size
    assert loop.growth_bytes == of_token
    assert loop.state_bytes == 3 * of_token + 16  # of the prompt, with the last token and the number made
    frames = skeleton.types(dims)["encode.hidden"].shape[1]
    of_cross = frames * 2 * 4 * facts.layers * facts.heads * facts.head_size
    assert loop.captured_bytes in (of_cross, of_cross + 8)  # with their length, unless that is fixed


def test_what_a_loop_took_tells_nothing_where_its_end_depends_on_data() -> None:
    model = decoder(5)
    assert block_of(model).signature
    say_trips(model, 5)
    assert block_of(model).signature == ""
    assert block_of(model).features["matmul.Loop"] == block_of(model).flops["matmul"]
