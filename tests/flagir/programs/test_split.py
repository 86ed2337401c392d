"""A decoder in two parts gives what it gives in one."""

import numpy as np
import pytest
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import Engine, close
from tests.flagir.programs.made import program_of

from flagsplit.errors import ModelError, UsageError
from flagsplit.flagir.programs.split import split_step


def layered(seed: int) -> oracle.Made:
    """A decoder of at least two layers."""
    rng = np.random.default_rng(seed)
    while (made := oracle.llama_like(rng)).decoder.layers < 2:
        pass
    return made


@pytest.mark.parametrize("seed", range(6))
def test_two_parts_are_the_whole(seed: int) -> None:
    made = layered(seed)
    program = program_of(made, [1])
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(1, made.decoder.layers))
    first, second = split_step(program, cut)
    assert [value.name for value in first.graph.inputs][:3] == ["tokens", "positions", "past_lengths"]
    assert [value.name for value in second.graph.inputs][:4] == ["rows", "positions", "past_lengths", "last"]
    assert next(value.name for value in second.graph.outputs) == "logits"
    near, far = Engine(first), Engine(second)
    assert (len(near.empty), len(far.empty)) == (2 * cut, 2 * (made.decoder.layers - cut))
    streams = []
    for length in (4, 9):
        tokens = [int(token) for token in rng.integers(0, made.decoder.vocabulary, length)]
        streams.append((near.open(tokens), far.open(tokens)))
    wanted = [oracle.logits(made.decoder, made.decoder_weights, pair[0].tokens, None) for pair in streams]
    for counts in ((1, 5), (2, 1), (1, 3)):
        rows = near.run([pair[0] for pair in streams], counts, spare=1)
        found = far.run([pair[1] for pair in streams], counts, spare=1, rows=rows)
        close(found, np.stack([logits[pair[0].done - 1] for logits, pair in zip(wanted, streams, strict=True)]))


def test_what_cannot_be_cut() -> None:
    made = layered(0)
    program = program_of(made, [1])
    for layers in (0, made.decoder.layers):
        with pytest.raises(UsageError, match=f"1 to {made.decoder.layers - 1} layers, came {layers}"):
            split_step(program, layers)
    with pytest.raises(UsageError, match="is encoder-decoder"):
        split_step(program_of(oracle.whisper_like(np.random.default_rng(0)), [1]), 1)


def test_a_decoder_without_a_place_to_cut() -> None:
    """Its last layer reads the embedding of the tokens once more."""
    made = layered(0)
    program = program_of(made, [1])
    graph = program.graphs["step"].graph
    (embedded,) = (node.outputs[0] for node in graph if node.op_type == "Gather")
    last = next(node for node in reversed(list(graph)) if node.op_type == "Add")
    last.replace_input_with(0, embedded)
    with pytest.raises(ModelError, match="all that layers from 1 on read"):
        split_step(program, 1)
