"""LSTM, GRU and RNN: with MIL's LSTM where it means the same, else step by step, as the number of steps is known."""

from collections.abc import Sequence

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, Array, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.ops.cells import ACTIVATIONS, CELLS, Cell
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_MOST_STEPS = 256
"""How many steps are written out: each is a dozen operations."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_CELL_STATE, _PEEPHOLES = 6, 7


def _activations(facts: NodeFacts) -> list[list[str]]:
    """The activations of each direction."""
    given = facts.node.attributes.get("activations")
    each = list(_DEFAULTS[facts.op])
    names = each * facts.shape(1)[0] if given is None else list(given.as_strings())
    return [names[at : at + len(each)] for at in range(0, len(names), len(each))]


def _odd_recurrence(facts: NodeFacts) -> str:
    attributes = facts.node.attributes
    for name in ("activation_alpha", "activation_beta", "clip"):
        if name in attributes and (name == "clip" or attributes[name].as_floats()):
            return f"its attribute {name} has no equivalent"
    if facts.integer("input_forget", 0):
        return "its input and forget gates are coupled"
    odd = {name for names in _activations(facts) for name in names} - set(ACTIVATIONS)
    if odd:
        return f"its activation {min(odd)} has no equivalent"
    steps = facts.shape()[facts.integer("layout", 0)]
    if steps > _MOST_STEPS and not _is_native(facts):
        return f"it has {steps} steps; over {_MOST_STEPS} only a plain LSTM of constant weights can have"
    return ""


def _is_native(facts: NodeFacts) -> bool:
    plain = all(names == _DEFAULTS["LSTM"] for names in _activations(facts))
    constant = all(facts.is_const(at) for at in (1, 2, 3) if facts.has(at))
    apart = facts.has(4) or facts.has(_PEEPHOLES) or facts.integer("layout", 0)
    return facts.op == "LSTM" and plain and constant and not apart


@lowers("LSTM", "GRU", "RNN", dtypes=FLOATS, why_not=_odd_recurrence)
def lower_recurrence(site: Site) -> Sequence[Var | None]:
    return _native_lstm(site) if _is_native(site) else _written_out(site)


def _native_lstm(site: Site) -> Sequence[Var | None]:
    mb, (steps, batch, _), directions = site.mb, site.shape(), site.shape(1)[0]
    hidden = site.shape(2)[2]
    weights = {}
    for at, suffix in zip(range(directions), ("", "_back"), strict=False):
        weights[f"weight_ih{suffix}"] = _gates_of(site.const(1)[at], hidden)  # type: ignore[index]
        weights[f"weight_hh{suffix}"] = _gates_of(site.const(2)[at], hidden)  # type: ignore[index]
        bias = site.const(3)
        if bias is not None:
            total = bias[at][: 4 * hidden] + bias[at][4 * hidden :]
            weights[f"bias{suffix}"] = _gates_of(total, hidden)
    state = [_flat_state(site, at, batch, directions, hidden) for at in (5, _CELL_STATE)]
    backward = site.text("direction", "forward") == "reverse"
    every, last, cell = mb.lstm(
        x=_turned(site, site.var()) if backward else site.var(),
        initial_h=state[0],
        initial_c=state[1],
        direction="forward" if directions == 1 else "bidirectional",
        output_sequence=True,
        **weights,
    )
    if backward:  # in which order MIL's own reverse gives the steps its documentation leaves open
        every = _turned(site, every)
    made = site.transpose(site.reshape(every, (steps, batch, directions, hidden)), [0, 2, 1, 3])
    ends = [site.transpose(site.reshape(end, (batch, directions, hidden)), [1, 0, 2]) for end in (last, cell)]
    return [made, *ends]


def _gates_of(array: Array, hidden: int) -> Array:
    """From ONNX's order of gates (i o f c) to MIL's (i f o c)."""
    gates = [array[at * hidden : (at + 1) * hidden] for at in (0, 2, 1, 3)]
    return np.ascontiguousarray(np.concatenate(gates))


def _flat_state(site: Site, at: int, batch: int, directions: int, hidden: int) -> Var:
    if not site.has(at):
        return site.numbers(np.zeros((batch, directions * hidden)))
    turned = site.transpose(site.var(at), [1, 0, 2])
    return site.reshape(turned, (batch, directions * hidden))


def _written_out(site: Site) -> Sequence[Var | None]:
    mb, batch_first = site.mb, site.integer("layout", 0)
    x = site.transpose(site.var(), [1, 0, 2]) if batch_first else site.var()
    directions = site.shape(1)[0]
    every, ends = [], []
    for at in range(directions):
        backward = at == 1 or site.text("direction", "forward") == "reverse"
        made, end = _direction(site, x, at, backward)
        every.append(mb.expand_dims(x=made, axes=[1]))
        ends.append(end)
    whole = every[0] if directions == 1 else mb.concat(values=every, axis=1)
    last = [
        mb.stack(values=list(states), axis=0) if directions > 1 else mb.expand_dims(x=states[0], axes=[0])
        for states in zip(*ends, strict=True)
    ]
    if batch_first:
        whole = mb.transpose(x=whole, perm=[2, 0, 1, 3])
        last = [mb.transpose(x=state, perm=[1, 0, 2]) for state in last]
    return [whole, *last]


def _direction(site: Site, x: Var, at: int, backward: bool) -> tuple[Var, list[Var]]:
    """One direction: its states of all steps [steps, batch, hidden], and the last ones."""
    mb, gates = site.mb, _GATES[site.op]
    hidden = site.shape(2)[2]
    x = _turned(site, x) if backward else x
    cell = Cell(site, at, hidden, gates, _activations(site)[at])
    projected = cell.project(x)
    states = [_initial(site, 5, at, x.shape[1], hidden)]
    if site.op == "LSTM":
        states.append(_initial(site, _CELL_STATE, at, x.shape[1], hidden))
    made = []
    for step in range(x.shape[0]):
        now = site.reshape(site.cut(projected, 0, step, step + 1), projected.shape[1:])
        new = CELLS[site.op](cell, now, states)
        shown = new[0]
        if site.has(4):
            runs = mb.expand_dims(x=mb.greater(x=site.var(4), y=np.int32(step)), axes=[1])
            runs = site.broadcast(site.as_int(runs), new[0].shape)
            runs = mb.cast(x=runs, dtype="bool")
            shown = mb.select(cond=runs, a=new[0], b=site.number(0))
            new = [mb.select(cond=runs, a=after, b=before) for after, before in zip(new, states, strict=True)]
        states = list(new)
        made.append(shown)
    whole = mb.stack(values=made, axis=0) if len(made) > 1 else mb.expand_dims(x=made[0], axes=[0])
    return (_turned(site, whole) if backward else whole), states


def _turned(site: Site, x: Var) -> Var:
    """In reverse; with lengths each sequence by itself."""
    if site.has(4):
        return site.mb.reverse_sequence(x=x, lengths=site.var(4), seq_axis=0, batch_axis=1)
    return site.mb.reverse(x=x, axes=[0])


def _initial(site: Site, at: int, direction: int, batch: int, hidden: int) -> Var:
    if not site.has(at):
        return site.mb.const(val=site.numbers(np.zeros((batch, hidden))))
    axis = 1 if site.integer("layout", 0) else 0
    return site.reshape(site.cut(site.var(at), axis, direction, direction + 1), (batch, hidden))
