"""The graph `encode` of an encoder of sound, out of its weights; `spec.py` names them."""

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.layers import (
    attend,
    count_up,
    join_heads,
    length_of,
    mlp,
    norm,
    project,
    residual,
    rotate_plainly,
    rotation,
)
from flagsplit.flagir.programs.log_mel import write_log_mel
from flagsplit.flagir.programs.spec import Conv, EncoderSpec
from flagsplit.flagir.programs.writer import REAL, GraphWriter, Weights, declared


def build_encode(spec: EncoderSpec, weights: Weights) -> ir.Model:
    """The graph `encode`: `audio` [batch, samples] or `log_mel` [batch, bins, steps] to `hidden`.

    `hidden` is [batch, frames, width].

    With learned positions the length is fixed: that which gives as many frames as there are positions.

    Args:
        spec: of the encoder.
        weights: by the names of `spec.py`, of any float type; the graph has them in float32.

    Raises:
        ModelError: a weight is missing or has another shape.
    """
    g = GraphWriter("encode", weights)
    bins = g.array("convs.0.weight", (None, None, None)).shape[1]
    if spec.input == "audio":
        audio = g.input("audio", REAL, ["batch", "samples"])
        rows = _spectrogram(g, spec, audio) if spec.mel_bands else g.op("Unsqueeze", audio, g.numbers(1))
    else:
        rows = g.input("log_mel", REAL, ["batch", bins, _steps(g, spec)])
    for index, conv in enumerate(spec.convs):
        rows = _conv(g, spec, rows, conv, f"convs.{index}")
    rows = declared(g.op("Transpose", rows, perm=[0, 2, 1]), ["batch", "frames", spec.width])
    turn = None
    if spec.rotary_size:
        turn = rotation(g, spec, _positions(g, rows))
    else:
        rows = residual(g, rows, g.weight("positions.weight", (None, spec.width)))
    for i in range(spec.layers):
        name = f"layers.{i}.self"
        queries, keys, values = project(g, spec, norm(g, spec, rows, f"{name}.norm"), name, [])
        mixed = attend(g, rotate_plainly(g, spec, queries, turn), rotate_plainly(g, spec, keys, turn), values, None)
        rows = mlp(g, spec, join_heads(g, spec, mixed, name, rows), f"layers.{i}.mlp")
    bias = (g.weight("norm.bias", (spec.width,)),) if g.has("norm.bias") else ()
    operator = "RMSNormalization" if spec.norm == "rms" else "LayerNormalization"
    weight = g.weight("norm.weight", (spec.width,))
    return g.model([g.op(operator, rows, weight, *bias, name="hidden", axis=-1, epsilon=spec.epsilon)])


def _steps(g: GraphWriter, spec: EncoderSpec) -> int | str:
    """The steps of a log-mel that give as many frames as there are positions."""
    if spec.rotary_size:
        return "steps"
    steps: int = g.array("positions.weight", (None, spec.width)).shape[0]
    for index, conv in reversed(list(enumerate(spec.convs))):
        kernel = g.array(f"convs.{index}.weight", (None, None, None)).shape[2]
        steps = steps * conv.stride if kernel == 2 * conv.padding + 1 else (steps - 1) * conv.stride + kernel
    return steps


def _spectrogram(g: GraphWriter, spec: EncoderSpec, audio: ir.Value) -> ir.Value:
    steps = _steps(g, spec)
    if not isinstance(steps, int):
        raise ModelError(
            "expected an encoder of a log-mel of samples to have learned positions: they say how long it is"
        )
    return write_log_mel(g, audio, spec.mel_bands, steps)


def _positions(g: GraphWriter, rows: ir.Value) -> ir.Value:
    """0, 1, … for each row [batch, frames]: rotations are for each of a batch."""
    frames = count_up(g, None, length_of(g, rows, 1), [0])
    return g.op("Expand", frames, g.op("Concat", length_of(g, rows, 0), g.numbers(1), axis=0))


def _conv(g: GraphWriter, spec: EncoderSpec, rows: ir.Value, conv: Conv, name: str) -> ir.Value:
    weight = g.array(f"{name}.weight", (None, None, None))
    outputs, _, kernel = weight.shape
    bias = (g.weight(f"{name}.bias", (outputs,)),) if g.has(f"{name}.bias") else ()
    rows = g.op(
        "Conv",
        rows,
        g.constant(weight, np.float32, f"{name}.weight"),
        *bias,
        kernel_shape=[kernel],
        strides=[conv.stride],
        pads=[conv.padding, conv.padding],
    )
    rows = g.op("Gelu" if conv.activation == "gelu" else "Tanh", rows)
    if not conv.norm:
        return rows
    scale, shift = (
        g.constant(g.array(f"{name}.norm.{part}", (outputs,))[:, None], np.float32, f"{name}.norm.{part}")
        for part in ("weight", "bias")
    )
    return g.op("Add", g.op("Mul", _of_spread_1(g, spec, rows), scale), shift)


def _of_spread_1(g: GraphWriter, spec: EncoderSpec, rows: ir.Value) -> ir.Value:
    """A group norm of one group, written out: not every chip has the operator."""
    axes = g.numbers(1, 2)
    centered = g.op("Sub", rows, g.op("ReduceMean", rows, axes))
    variance = g.op("ReduceMean", g.op("Mul", centered, centered), axes)
    return g.op("Div", centered, g.op("Sqrt", g.op("Add", variance, g.constant(spec.conv_epsilon, np.float32))))
