"""Recurrent layers: over a sequence [s, b, I], step by step.

In the direction "reverse" the outputs come in the order in which they are computed, the last element's first; the
backward half of a bidirectional layer comes in the order of the sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import Arguments, Operator
from flagsplit.targets.mobile.mil.ops.activation import sigmoid
from flagsplit.targets.mobile.mil.types import Array

Activation = Callable[[Array], Array]

_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "hard_sigmoid": lambda x: np.minimum(np.maximum(x * np.float32(0.2) + np.float32(0.5), 0), 1),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "scaled_tanh": lambda x: np.float32(1.7159) * np.tanh(x * np.float32(2 / 3)),
    "sigmoid": sigmoid,
    "sigmoid_hard": lambda x: np.minimum(np.maximum(x * np.float32(0.2) + np.float32(0.5), 0), 1),
    "tanh": np.tanh,
}


def _activation(a: Arguments, name: str, default: str) -> Activation:
    return _ACTIVATIONS[a.choice(name, tuple(_ACTIVATIONS), default)]


def _sequence(a: Arguments, gates: int, suffix: str = "") -> tuple[Array, Array]:
    """The weighted inputs of all steps [s, b, gates * H], and the recurrent weight, transposed."""
    x, into, back = a.tensor("x"), a.tensor("weight_ih" + suffix), a.tensor("weight_hh" + suffix)
    if x.ndim != 3 or 0 in x.shape or into.shape[0] != back.shape[0] or back.shape[0] != gates * back.shape[1]:
        raise a.refuse(
            f"weights of shapes {list(into.shape)} and {list(back.shape)} do not fit x of shape {list(x.shape)}"
        )
    return x @ into.T, back.T


def _ordered(a: Arguments, inputs: Array) -> Array:
    return inputs[::-1] if a.choice("direction", ("forward", "reverse"), "forward") == "reverse" else inputs


def _given(a: Arguments, states: list[Array]) -> Array:
    """All states as one tensor, or the last."""
    return np.stack(states if a.flag("output_sequence", False) else states[-1:])


def rnn(a: Arguments) -> tuple[Array, ...]:
    """`h = activation(W x + R h + b)`."""
    inputs, back = _sequence(a, 1)
    bias, h = a.optional("bias"), a.tensor("initial_h")
    activation = _activation(a, "activation", "tanh")
    states = []
    for step in _ordered(a, inputs if bias is None else inputs + bias):
        h = activation(step + h @ back)
        states.append(h)
    return _given(a, states), h


def gru(a: Arguments) -> tuple[Array, ...]:
    """Gates r, o, z; the reset gate comes before the product, or after it with `reset_after`."""
    inputs, back = _sequence(a, 3)
    size = back.shape[0]
    after = a.flag("reset_after", False)
    bias, input_bias = (a.optional(name) for name in ("bias", "input_bias"))
    if input_bias is not None:
        inputs = inputs + input_bias
    recurrent_bias = np.zeros(3 * size, inputs.dtype) if bias is None else bias
    gate, activation = _activation(a, "recurrent_activation", "sigmoid"), _activation(a, "activation", "tanh")
    h = a.tensor("initial_h")
    reset, out, update = (slice(i * size, (i + 1) * size) for i in range(3))
    states = []
    for step in _ordered(a, inputs):
        r, z = (gate(step[:, at] + h @ back[:, at] + recurrent_bias[at]) for at in (reset, update))
        if after:
            inner = r * (h @ back[:, out] + recurrent_bias[out])
        else:
            gated = r * h
            inner = gated @ back[:, out] + recurrent_bias[out]
        h = (1 - z) * activation(step[:, out] + inner) + z * h
        states.append(h)
    return _given(a, states), h


@dataclass(frozen=True, eq=False)
class _Cell:
    """What both directions of an LSTM share."""

    gate: Activation
    cell: Activation
    out: Activation
    clip: float | None


def lstm(a: Arguments) -> tuple[Array, ...]:
    """Gates i, f, o, z; peepholes look at the cell, i and f before the step and o after it; the cell may be clipped."""
    direction = a.choice("direction", ("forward", "reverse", "bidirectional"), "forward")
    cell = _Cell(
        _activation(a, "recurrent_activation", "sigmoid"),
        _activation(a, "cell_activation", "tanh"),
        _activation(a, "activation", "tanh"),
        a.number("clip") if a.has("clip") else None,
    )
    h, c = a.tensor("initial_h"), a.tensor("initial_c")
    if direction != "bidirectional":
        states, c = _lstm_direction(a, cell, "", (h, c), reverse=direction == "reverse")
        return _given(a, states), states[-1], c
    half = h.shape[-1] // 2
    ahead, ahead_c = _lstm_direction(a, cell, "", (h[:, :half], c[:, :half]), reverse=False)
    back, back_c = _lstm_direction(a, cell, "_back", (h[:, half:], c[:, half:]), reverse=True)
    last = np.concatenate([ahead[-1], back[-1]], axis=-1)
    cells = np.concatenate([ahead_c, back_c], axis=-1)
    if not a.flag("output_sequence", False):
        return last[None], last, cells
    return np.concatenate([np.stack(ahead), np.stack(back[::-1])], axis=-1), last, cells


def _lstm_direction(
    a: Arguments, cell: _Cell, suffix: str, initial: tuple[Array, Array], *, reverse: bool
) -> tuple[list[Array], Array]:
    """The states of all steps in the order in which they are computed, and the last cell."""
    inputs, back = _sequence(a, 4, suffix)
    bias, peephole = a.optional("bias" + suffix), a.optional("peephole" + suffix)
    if bias is not None:
        inputs = inputs + bias
    size = back.shape[0]
    peep_i, peep_f, peep_o = np.split(peephole, 3) if peephole is not None else [np.float32(0)] * 3
    h, c = initial
    states = []
    for step in inputs[::-1] if reverse else inputs:
        gates = step + h @ back
        i, f, o, z = (gates[:, at * size : (at + 1) * size] for at in range(4))
        c = cell.gate(f + peep_f * c) * c + cell.gate(i + peep_i * c) * cell.cell(z)
        if cell.clip is not None:
            c = np.clip(c, -cell.clip, cell.clip)
        h = cell.gate(o + peep_o * c) * cell.out(c)
        states.append(h)
    return states, c


OPERATORS: Final[Mapping[str, Operator]] = {"gru": gru, "lstm": lstm, "rnn": rnn}
