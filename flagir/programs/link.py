"""A program linked into one ordinary model, which makes all tokens of an answer, greedily.

    input -> encode -> prefill -> Loop of (step, choice of the token) -> tokens [1, n]

The first round of the loop takes the whole prompt, each later one the token made last, so that the weights of `step`
are read in one place: the loop is one node, and goes to one tier as a whole. It is the reference for every other way
to run the program greedily.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from flagsplit.errors import UsageError
from flagsplit.flagir.programs.layers import MASKED, length_of
from flagsplit.flagir.programs.program import Program, ProgramFacts
from flagsplit.flagir.programs.writer import REAL, WHOLE, GraphWriter


def link(program: Program, max_tokens: int) -> ir.Model:
    """The canonical model that answers one input.

    Its input is that of `encode`, of one item, or `prompt` int64 [1, n] of a program that reads text, in which the
    program's own prompt is not contained. Its output is `tokens` int64 [1, m] without prompt and stop token.

    Args:
        program: stays as it is; the model shares its weights.
        max_tokens: most tokens of an answer; the facts may set a lower limit.

    Raises:
        UsageError: `max_tokens` is not positive.
        ModelError: the graphs do not fit together.
    """
    if max_tokens < 1:
        raise UsageError(f"expected to make at least one token, came {max_tokens}")
    facts = program.facts
    g = GraphWriter(facts.name, {})
    prompt = g.constant([facts.prompt], np.int64, "prompt.tokens") if facts.prompt else None
    cross: dict[str, ir.Value] = {}
    room = min(max_tokens, facts.max_positions - len(facts.prompt))
    most = g.constant(room, np.int64)
    if facts.kind == "encoder-decoder":
        (source,) = program.graphs["encode"].graph.inputs
        dims = [1, *(dim if isinstance(dim, int) else str(dim.value) for dim in list(source.shape or ())[1:])]
        entry = g.input(source.name or "", REAL, dims)
        hidden = g.inline(program.graphs["encode"], "encode", {source.name or "": entry})["hidden"]
        cross = g.inline(program.graphs["prefill"], "prefill", {"hidden": hidden})
        cross["cross_lengths"] = length_of(g, hidden, 1)
        if facts.tokens_per_frame is not None:
            most = g.op("Min", most, _by_length(g, facts.tokens_per_frame, cross["cross_lengths"]))
    else:
        entry = g.input("prompt", WHOLE, [1, "prompt_tokens"])
        prompt = g.op("Concat", prompt, entry, axis=1) if prompt is not None else entry
        left = g.op("Sub", g.constant([facts.max_positions], np.int64), length_of(g, prompt, 1))
        most = g.op("Min", most, g.op("Reshape", left, g.numbers()))
    assert prompt is not None
    return g.model([_loop(g, program, prompt, cross, most)])


def _by_length(g: GraphWriter, rate: Fraction, frames: ir.Value) -> ir.Value:
    """As many tokens as hidden states of this number may give: `ProgramFacts.most_tokens_of`, in whole numbers."""
    scaled = g.op("Mul", frames, g.constant([rate.numerator], np.int64))
    tokens = g.op("Div", scaled, g.constant([rate.denominator], np.int64))
    return g.op("Reshape", tokens, g.numbers())


@dataclass(frozen=True)
class _State:
    """What a round of the loop takes from the one before.

    Attributes:
        chunk: tokens to take in, int64 [1, chunk].
        made: how many tokens of the answer there are, int64 [1].
        caches: keys and values of all tokens taken in.
    """

    chunk: ir.Value
    made: ir.Value
    caches: list[ir.Value]

    def values(self) -> list[ir.Value]:
        return [self.chunk, self.made, *self.caches]


def _loop(g: GraphWriter, program: Program, prompt: ir.Value, cross: dict[str, ir.Value], most: ir.Value) -> ir.Value:
    facts = program.facts
    empty = g.constant(np.zeros((1, facts.kv_heads, 0, facts.head_size)), np.float32, "loop.no_cache")
    start = _State(prompt, g.constant([0], np.int64), [empty] * len(facts.past_names))
    since = g.size
    rounds, go_on = _formal("loop.round", WHOLE, []), _formal("loop.go_on", ir.DataType.BOOL, [])
    cache: list[int | str] = [1, facts.kv_heads, "past", facts.head_size]
    state = _State(
        _formal("loop.chunk", WHOLE, [1, "chunk"]),
        _formal("loop.made", WHOLE, [1]),
        [_formal(f"loop.{name}", REAL, cache) for name in facts.past_names],
    )
    after, more, token = _round(g, program, state, cross)
    for value in after.values():
        value.name = f"next.{value.name}"
    body = g.body("loop", [rounds, go_on, *state.values()], [more, *after.values(), token], since)
    true = g.constant(True, np.bool_)
    ends = g.ops("Loop", most, true, *start.values(), outputs=len(start.values()) + 1, body=body)
    tokens = g.op("Slice", ends[-1], g.numbers(0), ends[1], g.numbers(0))
    made = g.op("Reshape", tokens, g.numbers(1, -1), name="tokens")
    made.type, made.shape = ir.TensorType(WHOLE), ir.Shape([1, "tokens"])
    return made


def _round(
    g: GraphWriter, program: Program, state: _State, cross: dict[str, ir.Value]
) -> tuple[_State, ir.Value, ir.Value]:
    """The state after a round, whether to go on, and the token made, int64 [1]."""
    facts = program.facts
    past, length = length_of(g, state.caches[0], 2), length_of(g, state.chunk, 1)
    scalar, one = g.numbers(), g.constant(1, np.int64)
    total = g.op("Reshape", g.op("Add", past, length), scalar)
    positions = g.op("Unsqueeze", g.op("Range", g.op("Reshape", past, scalar), total, one), g.numbers(0))
    found = g.inline(
        program.graphs["step"],
        "step",
        {
            "tokens": state.chunk,
            "positions": positions,
            "past_lengths": past,
            "last": g.op("Sub", length, g.numbers(1)),
            **dict(zip(facts.past_names, state.caches, strict=True)),
            **cross,
        },
    )
    token = g.op("ArgMax", _allowed(g, facts, found["logits"], state.made), axis=1, keepdims=0)
    stops = g.op("Equal", token, g.constant(facts.stop_tokens, np.int64))
    stopped = g.op("ReduceMax", g.op("Cast", stops, to=WHOLE), keepdims=0)
    more = g.op("Equal", stopped, g.constant(0, np.int64))
    made = g.op("Add", state.made, g.op("Sub", g.numbers(1), stopped))
    caches = [g.op("Concat", old, found[name], axis=2) for old, name in zip(state.caches, facts.new_names, strict=True)]
    return _State(g.op("Unsqueeze", token, g.numbers(0)), made, caches), more, token


def _allowed(g: GraphWriter, facts: ProgramFacts, logits: ir.Value, made: ir.Value) -> ir.Value:
    """Logits without the tokens that are never made, or not at the beginning."""
    for tokens, only_first in ((facts.suppressed, False), (facts.begin_suppressed, True)):
        if not tokens:
            continue
        mask = np.zeros((1, facts.vocabulary), np.float32)
        mask[0, list(tokens)] = MASKED
        name = f"loop.suppressed{'_at_first' if only_first else ''}"
        added: ir.Value = g.constant(mask, np.float32, name)
        if only_first:
            first = g.op("Equal", made, g.constant([0], np.int64))
            added = g.op("Where", first, added, g.constant(0.0, np.float32))
        logits = g.op("Add", logits, added)
    return logits


def _formal(name: str, dtype: ir.DataType, dims: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))
