"""Recurrent layers against ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import run

STEPS, BATCH, INPUT, HIDDEN = 4, 2, 3, 5


def _random(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _gates(weight: np.ndarray[Any, Any], order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The gates along the first axis in another order."""
    return np.concatenate([np.split(weight, len(order))[at] for at in order])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("sequence", [False, True])
def test_rnn(tmp_path: Path, direction: str, sequence: bool) -> None:
    x, h, w, r, b = _random(1, (STEPS, BATCH, INPUT), (BATCH, HIDDEN), (HIDDEN, INPUT), (HIDDEN, HIDDEN), (HIDDEN,))

    def build(mb: Any, x: Any, h: Any) -> Any:
        return mb.rnn(x=x, initial_h=h, weight_ih=w, weight_hh=r, bias=b, direction=direction, output_sequence=sequence)

    outs, last = run(tmp_path, build, {"x": x, "h": h})
    both = np.concatenate([b, np.zeros_like(b)])
    wanted = onnx_op(
        "RNN", x, w[None], r[None], both[None], None, h[None], outputs=2, hidden_size=HIDDEN, direction=direction
    )
    _check(outs, last, wanted, direction, sequence)


def _check(
    outs: np.ndarray[Any, Any], last: np.ndarray[Any, Any], wanted: list[Any], direction: str, sequence: bool
) -> None:
    """MIL gives a reverse layer's outputs in the order in which they are computed, ONNX in that of the input."""
    states = wanted[0][:, 0]
    ordered = states[::-1] if direction == "reverse" else states
    close(outs, ordered if sequence else ordered[-1:])
    close(last, wanted[1][0])


# ONNX has the gates of a GRU as z, r, h; MIL as r, o, z.
GRU_ORDER = (2, 0, 1)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru(tmp_path: Path, direction: str, after: bool) -> None:
    x, h, w, r, b, c = _random(
        2,
        (STEPS, BATCH, INPUT),
        (BATCH, HIDDEN),
        (3 * HIDDEN, INPUT),
        (3 * HIDDEN, HIDDEN),
        (3 * HIDDEN,),
        (3 * HIDDEN,),
    )
    given = {"reset_after": True, "input_bias": c} if after else {}

    def build(mb: Any, x: Any, h: Any) -> Any:
        return mb.gru(
            x=x, initial_h=h, weight_ih=w, weight_hh=r, bias=b, direction=direction, output_sequence=True, **given
        )

    outs, last = run(tmp_path, build, {"x": x, "h": h}, ios=18 if after else 15)
    inner = c if after else np.zeros_like(b)
    both = np.concatenate([_gates(inner, GRU_ORDER), _gates(b, GRU_ORDER)])
    wanted = onnx_op(
        "GRU",
        x,
        _gates(w, GRU_ORDER)[None],
        _gates(r, GRU_ORDER)[None],
        both[None],
        None,
        h[None],
        outputs=2,
        hidden_size=HIDDEN,
        direction=direction,
        linear_before_reset=int(after),
    )
    _check(outs, last, wanted, direction, True)


# ONNX has the gates of an LSTM as i, o, f, c; MIL as i, f, o, z.
LSTM_ORDER = (0, 2, 1, 3)


def _lstm_weights(seed: int) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Weights, recurrent weights, bias and peepholes, as MIL and as ONNX have them."""
    w, r, b, p = _random(seed, (4 * HIDDEN, INPUT), (4 * HIDDEN, HIDDEN), (4 * HIDDEN,), (3 * HIDDEN,))
    both = np.concatenate([_gates(b, LSTM_ORDER), np.zeros_like(b)])
    return [w, r, b, p], [_gates(w, LSTM_ORDER), _gates(r, LSTM_ORDER), both, _gates(p, LSTM_ORDER[:3])]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("peephole", [False, True])
def test_lstm(tmp_path: Path, direction: str, peephole: bool) -> None:
    x, h, c = _random(3, (STEPS, BATCH, INPUT), (BATCH, HIDDEN), (BATCH, HIDDEN))
    ours, theirs = _lstm_weights(4)
    given = {"peephole": ours[3]} if peephole else {}

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=ours[0],
            weight_hh=ours[1],
            bias=ours[2],
            direction=direction,
            output_sequence=True,
            **given,
        )

    outs, last, cell = run(tmp_path, build, {"x": x, "h": h, "c": c})
    wanted = onnx_op(
        "LSTM",
        x,
        theirs[0][None],
        theirs[1][None],
        theirs[2][None],
        None,
        h[None],
        c[None],
        theirs[3][None] if peephole else None,
        outputs=3,
        hidden_size=HIDDEN,
        direction=direction,
    )
    _check(outs, last, wanted, direction, True)
    close(cell, wanted[2][0])


@pytest.mark.parametrize("sequence", [False, True])
def test_bidirectional_lstm(tmp_path: Path, sequence: bool) -> None:
    x, h, c = _random(5, (STEPS, BATCH, INPUT), (BATCH, 2 * HIDDEN), (BATCH, 2 * HIDDEN))
    ours, theirs = _lstm_weights(6)
    ours_back, theirs_back = _lstm_weights(7)

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=ours[0],
            weight_hh=ours[1],
            bias=ours[2],
            weight_ih_back=ours_back[0],
            weight_hh_back=ours_back[1],
            bias_back=ours_back[2],
            direction="bidirectional",
            output_sequence=sequence,
        )

    outs, last, cell = run(tmp_path, build, {"x": x, "h": h, "c": c})
    halves = (np.stack(np.split(state, 2, axis=-1)) for state in (h, c))
    weights = (np.stack(pair) for pair in zip(theirs[:3], theirs_back[:3], strict=True))
    states, last_h, last_c = onnx_op(
        "LSTM", x, *weights, None, *halves, outputs=3, hidden_size=HIDDEN, direction="bidirectional"
    )
    close(last, np.concatenate(list(last_h), axis=-1))
    close(cell, np.concatenate(list(last_c), axis=-1))
    close(outs, np.concatenate([states[:, 0], states[:, 1]], axis=-1) if sequence else last[None])


def test_the_cell_is_clipped(tmp_path: Path) -> None:
    x, h, c = _random(8, (STEPS, BATCH, INPUT), (BATCH, HIDDEN), (BATCH, HIDDEN))
    ours, _ = _lstm_weights(9)

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(x=x, initial_h=h, initial_c=c, weight_ih=ours[0], weight_hh=ours[1], clip=0.25)

    _, _, cell = run(tmp_path, build, {"x": x, "h": h, "c": c})
    assert np.abs(cell).max() == np.float32(0.25)
