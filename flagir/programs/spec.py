"""What distinguishes one transformer from another, and the names of the weights.

Weights are arrays in a dict. Every linear layer has `NAME.weight` [outputs, inputs] and perhaps `NAME.bias` [outputs];
every norm has `NAME.weight` [width] and perhaps `NAME.bias` [width]. Of a decoder:

    tokens.weight                [vocabulary, width]; also makes the logits, unless there is
    logits.weight                [vocabulary, width]
    positions.weight             [max_positions, width], where positions are learned (`rotary_size` is 0)
    rotary.frequencies           [rotary_size / 2], radians for each position; see `rotary_frequencies`
    layers.I.self.norm           before the self-attention of layer I
    layers.I.self.q .k .v .o     its projections: [heads * head_size, width], twice [kv_heads * head_size, width],
                                 [width, heads * head_size]
    layers.I.cross.norm, layers.I.cross.q .k .v .o     the same of cross-attention, with `heads` heads of each
    layers.I.mlp.norm, layers.I.mlp.up, layers.I.mlp.down, and where gated layers.I.mlp.gate
    norm                         before the logits

Of an encoder:

    convs.I.weight, convs.I.bias       [outputs, inputs, kernel], over time
    convs.I.norm.weight, .bias         [outputs], of the group norm after it, where it has one
    positions.weight                   [frames, width], or rotary.frequencies
    layers.I.self.…, layers.I.mlp.…, norm    as of a decoder
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flagsplit.errors import ModelError

Norm = Literal["layer", "rms"]
Mlp = Literal["gelu", "gated-silu"]


@dataclass(frozen=True)
class Spec:
    """What encoders and decoders have.

    Attributes:
        layers: how many.
        heads: of attention.
        kv_heads: heads of keys and values; a divisor of `heads`.
        head_size: elements of a head.
        width: elements of a hidden state.
        norm: layer norm or root-mean-square norm, before every part of a layer and at the end.
        epsilon: of the norms.
        mlp: `down(gelu(up(x)))` or `down(silu(gate(x)) * up(x))`.
        rotary_size: how many elements of a head are rotated; 0: positions are learned.
        rotary_interleaved: pairs are neighbors, else an element and that half of `rotary_size` later.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    norm: Norm
    epsilon: float
    mlp: Mlp
    rotary_size: int = 0
    rotary_interleaved: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values")
        if self.rotary_size % 2 or self.rotary_size > self.head_size:
            raise ModelError(f"expected an even part of {self.head_size} elements to rotate, came {self.rotary_size}")


@dataclass(frozen=True)
class DecoderSpec(Spec):
    """A decoder.

    Attributes:
        vocabulary: how many tokens there are.
        cross: whether it attends to an encoder.
    """

    vocabulary: int = 0
    cross: bool = False


@dataclass(frozen=True)
class Conv:
    """A convolution over time.

    Attributes:
        stride: of it.
        padding: zeros before and after.
        activation: after it.
        norm: whether a group norm of one group follows the activation.
    """

    stride: int
    padding: int
    activation: Literal["gelu", "tanh"]
    norm: bool = False


@dataclass(frozen=True)
class EncoderSpec(Spec):
    """An encoder of sound.

    Attributes:
        input: samples or log-mel.
        mel_bands: samples become a log-mel of that many bands first (`log_mel.py`); 0: they do not.
        convs: what comes before the layers.
        conv_epsilon: of the norms after convolutions.
    """

    input: Literal["audio", "log-mel"] = "audio"
    mel_bands: int = 0
    convs: tuple[Conv, ...] = ()
    conv_epsilon: float = 1e-5


def rotary_frequencies(size: int, theta: float) -> npt.NDArray[np.float32]:
    """The weight `rotary.frequencies` as most models have it: `theta ** (-2 i / size)`."""
    return np.asarray(theta ** (-np.arange(0, size, 2, dtype=np.float64) / size), np.float32)
