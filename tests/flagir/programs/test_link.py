"""A linked program against the greedy loop over plain numpy."""

import numpy as np
import pytest
from tests.flagir.programs import oracle
from tests.flagir.programs.driver import answers, engine
from tests.flagir.programs.made import greedy, program_of

from flagsplit.errors import UsageError
from flagsplit.flagir import Skeleton, block_graph, nominal_dims
from flagsplit.flagir.programs.link import link

SEEDS = range(5)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_tokens_of_a_linked_program(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = oracle.FAMILIES[family](rng)
    own = [int(token) for token in rng.integers(0, made.decoder.vocabulary, int(rng.integers(made.decoder.cross, 5)))]
    suppressed = [tuple(int(token) for token in rng.integers(0, 12, int(rng.integers(0, 6)))) for _ in range(2)]
    program = program_of(made, own, suppressed=suppressed[0], begin_suppressed=suppressed[1])
    most = int(rng.choice([1, 7, 100]))
    model = link(program, most)
    (source,) = model.graph.inputs
    if made.encoder is None:
        asked = rng.integers(0, made.decoder.vocabulary, int(rng.integers(1, 6)))
        found = answers(engine(model), {"prompt": asked[None]})["tokens"]
        wanted = greedy(made, program.facts, [*own, *map(int, asked)], None, most)
    else:
        assert made.encoder_weights is not None
        signal = rng.standard_normal((80,) if source.name == "audio" else (oracle.BINS, 18)).astype(np.float32)
        found = answers(engine(model), {source.name or "": signal[None]})["tokens"]
        hidden = oracle.encode(made.encoder, made.encoder_weights, signal)
        wanted = greedy(made, program.facts, own, hidden, most)
    assert found.dtype == np.int64
    assert found.tolist() == [wanted]


def test_answers_of_all_lengths_were_seen() -> None:
    """The cases above end by a stop token at once, later, by the limit, and by the positions."""
    lengths = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        made = oracle.llama_like(rng)
        facts = program_of(made, [1]).facts
        lengths.add(len(greedy(made, facts, [1], None, 100)))
    assert {0, 29} <= lengths
    assert len(lengths) > 3


@pytest.mark.parametrize(("samples", "rate"), [(40, 0.25), (80, 0.25), (81, 0.3), (80, 100.0)])
def test_as_many_tokens_as_the_input_is_long(samples: int, rate: float) -> None:
    made = oracle.moonshine_like(np.random.default_rng(1))
    program = program_of(made, [1], stop_tokens=(18,), suppressed=(18,), tokens_per_s=rate, frames_per_s=1.0)
    assert made.encoder is not None
    assert made.encoder_weights is not None
    signal = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    hidden = oracle.encode(made.encoder, made.encoder_weights, signal)
    found = answers(engine(link(program, 100)), {"audio": signal[None]})["tokens"]
    assert found.shape[1] == program.facts.most_tokens_of(len(hidden)) == min(29, int(len(hidden) * rate))


def test_the_loop_is_one_block() -> None:
    made = oracle.whisper_like(np.random.default_rng(0))
    model = link(program_of(made, [1, 4]), 5)
    skeleton = Skeleton(model)
    graph = block_graph(model, nominal_dims(skeleton, {}), skeleton)
    loops = [block for block in graph.blocks if any("loop" in name.lower() for name in block.nodes)]
    assert len(loops) == 1
    assert sum(node.op_type == "Loop" for node in model.graph) == 1
    assert not any((node.name or "").startswith("step.") for node in model.graph)


def test_no_tokens_to_make() -> None:
    with pytest.raises(UsageError, match="at least one token, came 0"):
        link(program_of(oracle.llama_like(np.random.default_rng(0)), [1]), 0)
