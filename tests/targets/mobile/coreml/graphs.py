"""Small canonical models of fixed shapes, from text."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit import flagir
from flagsplit.targets.interface import Array


def parse(text: str, weights: Mapping[str, Array | np.generic] | None = None) -> ir.Model:
    """A canonical model.

    Args:
        text: a graph in ONNX's text form, without the header.
        weights: initializers by name.
    """
    model: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    made = ir.serde.deserialize_model(model)
    flagir.canonicalize(made)
    return made


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    """Seeded normal floats."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, np.float32)


def difference(made: Array, wanted: Array) -> float:
    """How far an answer is off: the norm of the error by the norm of the answer."""
    right = wanted.astype(np.float64)
    return float(np.linalg.norm(made.astype(np.float64) - right) / np.linalg.norm(right))


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    """The first node of an operator."""
    return next(node for node in model.graph if node.op_type == op_type)
