"""The chain of a decoder's layers against the cuts between them, and against counts of what runs."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.errors import ModelError
from flagsplit.flagir.programs import Program
from flagsplit.flagir.programs.chain import layer_chain
from flagsplit.flagir.programs.split import split_step


def program(seed: int) -> Program:
    """A decoder with at least two layers."""
    for at in range(seed, seed + 1000, 100):
        made = program_of(oracle.llama_like(np.random.default_rng(at)), [1])
        if made.facts.layers > 1:
            return made
    raise AssertionError("no decoder of two layers was drawn")


@pytest.mark.parametrize("seed", range(4))
def test_layers_are_those_that_a_cut_parts(seed: int) -> None:
    made = program(seed)
    chain = layer_chain(made, 3, 4)
    every = [node.name or "" for node in made.graphs["step"].graph]
    assert sorted(name for block in chain.blocks for name in block.nodes) == sorted(every)
    for layers in range(1, made.facts.layers):
        parts = split_step(made, layers)
        first, rest = ({node.name or "" for node in part.graph} for part in parts)
        before = {name for block in chain.blocks[:layers] for name in block.nodes}
        assert first <= before  # what both parts compute is in the first that needs it
        assert before - first <= rest
        assert set(every) - before <= rest
        tensors = (value.const_value for value in parts[0].graph.initializers.values())
        weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        assert abs(sum(block.weight_bytes for block in chain.blocks[:layers]) - weights) < 200


def counted(made: Program, chunk: int, past: int) -> float:
    """Operations of all products of a step."""
    total = 0.0

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Any, b: Any) -> Any:
            nonlocal total
            product = np.matmul(a, b)
            total += 2.0 * product.size * a.shape[-1]
            return (product,)

    class Gemm(OpRun):
        op_domain = ""

        def _run(self, a: Any, b: Any, c: Any = None, **_: Any) -> Any:
            nonlocal total
            total += 2.0 * a.shape[0] * b.shape[0] * b.shape[1]
            return (a @ b.T,)

    facts, model = made.facts, made.graphs["step"]
    cache = np.zeros((1, facts.kv_heads, past, facts.head_size), np.float32)
    feeds = {
        "tokens": np.ones((1, chunk), np.int64),
        "positions": np.arange(past, past + chunk)[None],
        "past_lengths": np.array([past]),
        "last": np.array([chunk - 1]),
        **dict.fromkeys(facts.past_names, cache),
    }
    wanted = {value.name for value in model.graph.inputs}
    feeds = {name: array for name, array in feeds.items() if name in wanted}
    ReferenceEvaluator(ir.to_proto(model), new_ops=[MatMul, Gemm]).run(None, feeds)
    return total


@pytest.mark.parametrize("seed", range(2))
def test_an_answer_is_counted_as_it_is_made(seed: int) -> None:
    made, prompt, tokens = program(seed), 5, 4
    chain = layer_chain(made, prompt, tokens)
    wanted = counted(made, prompt, 0) + sum(counted(made, 1, prompt + step) for step in range(tokens))
    assert sum(block.flops["matmul"] for block in chain.blocks) == wanted


def test_state_and_traffic_by_hand() -> None:
    made = program(0)
    facts = made.facts
    chain = layer_chain(made, 6, 10)
    kv = 2 * 4 * facts.kv_heads * facts.head_size
    for block in chain.blocks:
        (loop,) = block.loops
        assert loop.last_state_bytes == (6 + 10) * kv
        assert loop.traffic_bytes == sum((6 + step) * kv for step in range(11))
        assert block.touched_weight_bytes >= 11 * (loop.weight_bytes - 100)
    assert [value.size_bytes for value in chain.values] == [48, *[4 * facts.width * 16] * (facts.layers - 1), 88]


def test_a_program_with_an_encoder_has_no_chain() -> None:
    made = program_of(oracle.whisper_like(np.random.default_rng(0)), [1])
    with pytest.raises(ModelError, match="expected a decoder without encoder to divide between layers"):
        layer_chain(made, 1, 1)
