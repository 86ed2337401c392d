"""RNN, GRU and LSTM, step by step: the steps are written out, so that they compile to one program."""

from collections.abc import Callable
from typing import Any

from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype
from flagsplit.targets.cloud.cuda.sdk import torch

_MOST_STEPS = 512
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_Activation = Callable[[Any], Any]
_ACTIVATIONS: dict[str, _Activation] = {
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "relu": lambda x: torch.relu(x),
}


def lower(site: Site) -> Kernel:
    """All directions of one layer; sequences that end early keep their last state."""
    kind, first = site.node.op_type, bool(site.integer("layout", 0))
    shape = site.shape(0)
    steps = shape[1] if first else shape[0]
    if steps > _MOST_STEPS:
        raise Refused(f"its {steps} steps are more than the {_MOST_STEPS} that are written out")
    if site.number("clip", 0.0) or site.integer("input_forget", 0):
        raise Refused("its gates are clipped or coupled")
    directions, hidden = site.shape(1)[0], site.integer("hidden_size", site.shape(2)[-1])
    names = [str(name).lower() for name in site.attributes.get_strings("activations", ()) or ()]
    names = names or [name.lower() for name in _DEFAULTS[kind]] * directions
    alphas = site.attributes.get_floats("activation_alpha", ())
    if alphas or not set(names) <= set(_ACTIVATIONS):
        raise Refused(f"of activations it takes sigmoid, tanh and relu, came {', '.join(names)}")
    each = len(names) // directions
    functions = [[_ACTIVATIONS[name] for name in names[at * each :][:each]] for at in range(directions)]
    backward = site.text("direction", "forward") == "reverse"
    linear_first = bool(site.integer("linear_before_reset", 0))
    wanted = [bool(value.name) for value in site.node.outputs] + [False] * 3
    dtype = site.out_dtype(wanted.index(True))

    def kernel(
        x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None, p: Any = None
    ) -> Any:
        x = x.transpose(0, 1) if first else x
        h, c = (each.transpose(0, 1) if first and each is not None else each for each in (h, c))
        zero = torch.zeros((x.shape[1], hidden), dtype=x.dtype, device=x.device)
        made = []
        for at in range(directions):
            start = [zero if each is None else each[at] for each in (h, c)]
            parts = [None if each is None else each[at] for each in (b, p)]
            step = _STEPS[kind](w[at], r[at], *parts, functions[at], linear_first)
            made.append(_run(step, x, start, lengths, reverse=backward if directions == 1 else at == 1))
        y = torch.stack([each[0] for each in made], 1)
        ends = [torch.stack([each[1][which] for each in made], 0) for which in range(2)]
        if first:
            y, ends = y.permute(2, 0, 1, 3), [each.transpose(0, 1) for each in ends]
        return tuple(each.to(as_dtype(dtype)) for each in (y, *ends)[: len(site.node.outputs)])

    return kernel


def _run(step: Callable[..., Any], x: Any, state: list[Any], lengths: Any, *, reverse: bool) -> tuple[Any, list[Any]]:
    """Every step of one direction: all outputs, and the last states."""
    steps = x.shape[0]
    outputs: list[Any] = [None] * steps
    for at in reversed(range(steps)) if reverse else range(steps):
        new = step(x[at], *state)
        if lengths is None:
            state, outputs[at] = new, new[0]
            continue
        going = (at < lengths)[:, None]
        state = [torch.where(going, one, old) for one, old in zip(new, state, strict=True)]
        outputs[at] = torch.where(going, new[0], torch.zeros_like(new[0]))
    return torch.stack(outputs, 0), state


def _rnn(w: Any, r: Any, b: Any, _p: Any, functions: list[_Activation], _linear_first: bool) -> Callable[..., Any]:
    (activation,) = functions
    bias = 0 if b is None else sum(b.chunk(2))
    return lambda x, h, c: [activation(x @ w.t() + h @ r.t() + bias), c]


def _gru(w: Any, r: Any, b: Any, _p: Any, functions: list[_Activation], linear_first: bool) -> Callable[..., Any]:
    gate, candidate = functions
    size = r.shape[-1]
    bias_w, bias_r = (torch.zeros_like(r[:, 0]),) * 2 if b is None else b.chunk(2)

    def step(x: Any, h: Any, c: Any) -> list[Any]:
        given, again = x @ w.t() + bias_w, h @ r[: 2 * size].t() + bias_r[: 2 * size]
        update, reset = gate(given[:, : 2 * size] + again).chunk(2, -1)
        last, bias = r[2 * size :].t(), bias_r[2 * size :]
        kept = reset * (h @ last + bias) if linear_first else (reset * h) @ last + bias
        return [(1 - update) * candidate(given[:, 2 * size :] + kept) + update * h, c]

    return step


def _lstm(w: Any, r: Any, b: Any, p: Any, functions: list[_Activation], _linear_first: bool) -> Callable[..., Any]:
    gate, cell, result = functions
    bias = 0 if b is None else sum(b.chunk(2))

    def step(x: Any, h: Any, c: Any) -> list[Any]:
        i, o, f, g = (x @ w.t() + h @ r.t() + bias).chunk(4, -1)
        peep_i, peep_o, peep_f = (0, 0, 0) if p is None else p.chunk(3)
        c_new = gate(f + peep_f * c) * c + gate(i + peep_i * c) * cell(g)
        return [gate(o + peep_o * c_new) * result(c_new), c_new]

    return step


_STEPS: dict[str, Callable[..., Callable[..., Any]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
