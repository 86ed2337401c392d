"""RNN, GRU and LSTM, written out step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.matmul import product
from flagsplit.targets.tflite.program import Refused, Tensor

_MOST_STEPS = 256
_KNOWN = {"Tanh": "TANH", "Sigmoid": "LOGISTIC", "Relu": "RELU"}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


@dataclass(frozen=True)
class _Cell:
    """One direction: what it is made of, each piece a matrix or vector of one direction."""

    builder: Builder
    node: ir.Node
    hidden: int
    recurrent: Tensor
    own_bias: Tensor | None
    peephole: Tensor | None
    activations: Sequence[str]

    def gate(self, x: Tensor, at: int) -> Tensor:
        """One gate's part, [batch, hidden], of [batch, gates * hidden]."""
        return self.builder.cut(x, x.rank - 1, at * self.hidden, self.hidden)

    def act(self, x: Tensor, at: int) -> Tensor:
        clip = self.node.attributes.get_float("clip", 0.0)
        bounded = self.builder.maximum(self.builder.minimum(x, clip), -clip) if clip else x
        return self.builder.unary(_KNOWN[self.activations[at]], bounded)


def lower(builder: Builder, node: ir.Node) -> None:
    x = builder.take(node, 0)
    batch_first = bool(node.attributes.get_int("layout", 0))
    x = builder.transpose(x, (1, 0, 2)) if batch_first else x
    steps, batch, _ = x.shape
    if steps > _MOST_STEPS:
        raise Refused(f"is written out step by step, for up to {_MOST_STEPS} steps; came {steps}")
    lengths = builder.maybe_fixed(node, 4)
    if lengths is not None and not np.all(lengths == steps):
        raise Refused("takes sequences of full length")
    kind = node.attributes.get_string("direction", "forward")
    hidden = builder.take(node, 2).shape[-1]
    results = []
    for at, backward in enumerate({"forward": [False], "reverse": [True], "bidirectional": [False, True]}[kind]):
        cell, inputs = _prepare(builder, node, x, at, hidden)
        states = [_state(builder, node, index, at, batch, hidden, batch_first) for index in (5, 6)]
        results.append(_run(builder, node, cell, inputs, states, steps, backward))
    _hand_over(builder, node, results, batch_first)


def _prepare(builder: Builder, node: ir.Node, x: Tensor, at: int, hidden: int) -> tuple[_Cell, Tensor]:
    """The cell of a direction, and all its inputs times their weights: [steps, batch, gates * hidden]."""
    gates = _GATES[node.op_type]
    names = node.attributes.get_strings("activations", _DEFAULTS[node.op_type] * 2)
    count = len(_DEFAULTS[node.op_type])
    chosen = [str(each) for each in names[at * count : (at + 1) * count]]
    if unknown := [each for each in chosen if each not in _KNOWN]:
        raise Refused(f"takes activations {', '.join(_KNOWN)}, came {unknown[0]}")
    if node.attributes.get_int("input_forget", 0):
        raise Refused("takes no coupled input and forget gates")
    weights, recurrent = (_one(builder, builder.take(node, index), at) for index in (1, 2))
    bias = builder.maybe(node, 3)
    both = None if bias is None else _one(builder, bias, at)
    halves = [None if both is None else builder.cut(both, 0, half * gates * hidden, gates * hidden) for half in (0, 1)]
    peephole = builder.maybe(node, 7)
    peephole = None if peephole is None else _one(builder, peephole, at)
    inputs = product(builder, x, builder.transpose(weights, (1, 0)))
    cell = _Cell(builder, node, hidden, builder.transpose(recurrent, (1, 0)), halves[1], peephole, chosen)
    return cell, inputs if halves[0] is None else builder.add(inputs, halves[0])


def _one(builder: Builder, x: Tensor, at: int) -> Tensor:
    return builder.reshape(builder.cut(x, 0, at, 1), x.shape[1:])


def _state(builder: Builder, node: ir.Node, index: int, at: int, batch: int, hidden: int, batch_first: bool) -> Tensor:
    given = builder.maybe(node, index)
    if given is None:
        return builder.const(np.zeros((batch, hidden), np.float32))
    return _one(builder, builder.transpose(given, (1, 0, 2)) if batch_first else given, at)


def _run(
    builder: Builder, node: ir.Node, cell: _Cell, inputs: Tensor, states: list[Tensor], steps: int, backward: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The outputs in the order of time, the last hidden state and the last cell state."""
    step: Callable[[_Cell, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = _STEPS[node.op_type]
    hidden, memory = states
    made: dict[int, Tensor] = {}
    for time in reversed(range(steps)) if backward else range(steps):
        part = builder.reshape(builder.cut(inputs, 0, time, 1), inputs.shape[1:])
        hidden, memory = step(cell, part, hidden, memory)
        made[time] = hidden
    return [made[time] for time in range(steps)], hidden, memory


def _rnn(cell: _Cell, part: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    builder = cell.builder
    total = builder.add(part, product(builder, hidden, cell.recurrent))
    total = total if cell.own_bias is None else builder.add(total, cell.own_bias)
    return cell.act(total, 0), memory


def _lstm(cell: _Cell, part: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Gates in the order input, output, forget, cell; peepholes input, output, forget."""
    builder = cell.builder
    total = builder.add(part, product(builder, hidden, cell.recurrent))
    total = total if cell.own_bias is None else builder.add(total, cell.own_bias)

    def looking(at: int, state: Tensor) -> Tensor:
        gate = cell.gate(total, at)
        if cell.peephole is None:
            return gate
        return builder.add(gate, builder.mul(state, cell.gate(cell.peephole, at)))

    inward, forget = cell.act(looking(0, memory), 0), cell.act(looking(2, memory), 0)
    fresh = cell.act(cell.gate(total, 3), 1)
    memory = builder.add(builder.mul(forget, memory), builder.mul(inward, fresh))
    outward = cell.act(looking(1, memory), 0)
    return builder.mul(outward, builder.unary(_KNOWN[cell.activations[2]], memory)), memory


def _gru(cell: _Cell, part: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Gates in the order update, reset, hidden."""
    builder = cell.builder
    late = bool(cell.node.attributes.get_int("linear_before_reset", 0))

    def inner(x: Tensor, at: int) -> Tensor:
        made = product(builder, x, builder.cut(cell.recurrent, 1, at * cell.hidden, cell.hidden))
        return made if cell.own_bias is None else builder.add(made, cell.gate(cell.own_bias, at))

    update = cell.act(builder.add(cell.gate(part, 0), inner(hidden, 0)), 0)
    reset = cell.act(builder.add(cell.gate(part, 1), inner(hidden, 1)), 0)
    own = builder.mul(reset, inner(hidden, 2)) if late else inner(builder.mul(reset, hidden), 2)
    fresh = cell.act(builder.add(cell.gate(part, 2), own), 1)
    made = builder.add(fresh, builder.mul(update, builder.sub(hidden, fresh)))
    return made, memory


_STEPS: dict[str, Callable[[_Cell, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "RNN": _rnn,
    "GRU": _gru,
    "LSTM": _lstm,
}


def _hand_over(
    builder: Builder, node: ir.Node, results: list[tuple[list[Tensor], Tensor, Tensor]], batch_first: bool
) -> None:
    batch, hidden = results[0][1].shape
    lines = [
        builder.concat([builder.reshape(each, (1, 1, batch, hidden)) for each in outputs], 0)
        for outputs, _, _ in results
    ]
    whole = builder.concat(lines, 1)
    lasts = [[result[1] for result in results], [result[2] for result in results]]
    ends = [
        builder.concat([builder.reshape(each, (1, batch, hidden)) for each in states], 0)
        for states in lasts[: 2 if node.op_type == "LSTM" else 1]
    ]
    if batch_first:
        whole = builder.transpose(whole, (2, 0, 1, 3))
        ends = [builder.transpose(each, (1, 0, 2)) for each in ends]
    builder.give(node, whole, *ends)
