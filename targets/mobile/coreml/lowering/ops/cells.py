"""One step of an RNN, a GRU and an LSTM."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

ACTIVATIONS: Mapping[str, Callable[[Site, Var], Var]] = {
    "Sigmoid": lambda site, x: site.mb.sigmoid(x=x),
    "Tanh": lambda site, x: site.mb.tanh(x=x),
    "Relu": lambda site, x: site.mb.relu(x=x),
    "HardSigmoid": lambda site, x: site.mb.sigmoid_hard(x=x, alpha=site.number(0.2), beta=site.number(0.5)),
    "Softsign": lambda site, x: site.mb.softsign(x=x),
    "Softplus": lambda site, x: site.mb.softplus(x=x),
}
"""With ONNX's default parameters."""


class Cell:
    """The weights of one direction.

    Args:
        site: the node.
        at: which direction.
        hidden: size of the state.
        gates: how many gates lie one after another in the weights.
        activations: their names, in ONNX's order.
    """

    def __init__(self, site: Site, at: int, hidden: int, gates: int, activations: Sequence[str]) -> None:
        self.site, self.hidden, self.gates = site, hidden, gates
        self._act = [ACTIVATIONS[name] for name in activations]
        self._input, self.recurrent = self._part(1, at), self._part(2, at)
        bias = self._part(3, at) if site.has(3) else None
        half = gates * hidden
        self._bias = None if bias is None else self._range(bias, 0, half)
        self.recurrent_bias = None if bias is None else self._range(bias, half, 2 * half)
        self._peepholes = self._part(7, at) if site.op == "LSTM" and site.has(7) else None

    def project(self, x: Var) -> Var:
        """The share of the input in all gates of all steps at once."""
        made = self.site.mb.matmul(x=x, y=self._input, transpose_y=True)
        return self.added(made, self._bias)

    def added(self, x: Var, bias: Any) -> Var:
        """With a bias, if there is one."""
        return x if bias is None else self.site.mb.add(x=x, y=bias)

    def from_state(self, state: Var, first: int, last: int) -> Var:
        """The share of the state in gates first to last, with its bias."""
        low, high = first * self.hidden, last * self.hidden
        weight = self._range(self.recurrent, low, high)
        made = self.site.mb.matmul(x=state, y=weight, transpose_y=True)
        bias = self.recurrent_bias
        return self.added(made, None if bias is None else self._range(bias, low, high))

    def gate(self, x: Var, at: int) -> Var:
        """One gate's part of all gates side by side."""
        return self.site.cut(x, 1, at * self.hidden, (at + 1) * self.hidden)

    def act(self, at: int, x: Var) -> Var:
        """An activation."""
        return self._act[at](self.site, x)

    def peep(self, at: int, x: Var, state: Var) -> Var:
        """With what a gate sees of the cell's state."""
        if self._peepholes is None:
            return x
        seen = self._range(self._peepholes, at * self.hidden, (at + 1) * self.hidden)
        return self.site.mb.add(x=x, y=self.site.mb.mul(x=state, y=seen))

    def _part(self, operand: int, at: int) -> Any:
        array = self.site.const(operand)
        if array is not None:
            return array[at]
        shape = self.site.shape(operand)[1:]
        return self.site.reshape(self.site.cut(self.site.var(operand), 0, at, at + 1), shape)

    def _range(self, part: Any, low: int, high: int) -> Any:
        return part[low:high] if not hasattr(part, "op") else self.site.cut(part, 0, low, high)


def _rnn(cell: Cell, now: Var, states: Sequence[Var]) -> list[Var]:
    return [cell.act(0, cell.site.mb.add(x=now, y=cell.from_state(states[0], 0, 1)))]


def _gru(cell: Cell, now: Var, states: Sequence[Var]) -> list[Var]:
    mb, state = cell.site.mb, states[0]
    both = mb.add(x=cell.site.cut(now, 1, 0, 2 * cell.hidden), y=cell.from_state(state, 0, 2))
    update, reset = (cell.act(0, cell.gate(both, at)) for at in range(2))
    if cell.site.integer("linear_before_reset", 0):
        seen = mb.mul(x=reset, y=cell.from_state(state, 2, 3))
    else:
        seen = cell.from_state(mb.mul(x=reset, y=state), 2, 3)
    new = cell.act(1, mb.add(x=cell.gate(now, 2), y=seen))
    kept = mb.mul(x=update, y=mb.sub(x=state, y=new))
    return [mb.add(x=new, y=kept)]


def _lstm(cell: Cell, now: Var, states: Sequence[Var]) -> list[Var]:
    """Gates lie in the order input, output, forget, cell; so do peepholes, without the last."""
    mb, (hidden, memory) = cell.site.mb, states
    gates = mb.add(x=now, y=cell.from_state(hidden, 0, 4))
    taken = cell.act(0, cell.peep(0, cell.gate(gates, 0), memory))
    kept = cell.act(0, cell.peep(2, cell.gate(gates, 2), memory))
    new = cell.act(1, cell.gate(gates, 3))
    memory = mb.add(x=mb.mul(x=kept, y=memory), y=mb.mul(x=taken, y=new))
    shown = cell.act(0, cell.peep(1, cell.gate(gates, 1), memory))
    return [mb.mul(x=shown, y=cell.act(2, memory)), memory]


CELLS: Mapping[str, Callable[[Cell, Var, Sequence[Var]], list[Var]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
