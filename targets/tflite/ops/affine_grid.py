"""AffineGrid: the places of a picture, which are constant, times each matrix."""

import math

import numpy as np
import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.matmul import product
from flagsplit.targets.tflite.program import Refused


def lower(builder: Builder, node: ir.Node) -> None:
    """Of [batch, axes, axes + 1] to [batch, ..., axes], coordinates from the last axis to the first."""
    theta = builder.take(node, 0)
    batch, _, *sizes = (int(each) for each in builder.fixed(node, 1))
    if theta.shape != (batch, len(sizes), len(sizes) + 1):
        raise Refused(f"takes matrices of {(batch, len(sizes), len(sizes) + 1)}, came {theta.shape}")
    corners = bool(node.attributes.get_int("align_corners", 0))
    lines = [np.linspace(-1, 1, each) if corners else (2 * np.arange(each) + 1) / each - 1 for each in sizes]
    places = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(sizes)], -1)
    flat = builder.const(places.reshape(1, math.prod(sizes), -1), "float32")
    made = product(builder, flat, builder.transpose(theta, (0, 2, 1)))
    builder.give(node, builder.reshape(made, (batch, *sizes, len(sizes))))
