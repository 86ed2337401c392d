"""How int8 engines compute each operator, as a table: what is not in it stays in floating point.

The rules are those that LiteRT's int8 kernels and ONNX Runtime's QDQ fusions have in common (TensorFlow's
"LiteRT 8-bit quantization specification"): some operators only move integers about and give what they were given, some
have an output of fixed scale, all others have a scale of their own.
"""

from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.flagir.quantization.params import QuantParams


@dataclass(frozen=True)
class Weighted:
    """An operator that multiplies an activation with constant weights.

    Attributes:
        axis: of the output channels in the weights; negative counts from the end.
        has_bias: whether input 2 is a bias, one number for each channel.
    """

    axis: int
    has_bias: bool = True


SAME = frozenset(
    "AveragePool Concat DepthToSpace Expand Flatten Gather Identity Max MaxPool Min Pad ReduceMax ReduceMin Reshape "
    "Resize Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)
"""Their outputs have the parameters of their inputs, which all have the same."""

FIXED = {
    "Sigmoid": QuantParams(1 / 256, -128),
    "Softmax": QuantParams(1 / 256, -128),
    "Tanh": QuantParams(1 / 128, 0),
}
"""Outputs whose range is known without samples."""

OWN = frozenset(
    "Add Clip Conv ConvTranspose Gemm GlobalAveragePool HardSigmoid HardSwish LeakyRelu MatMul Mul PRelu "
    "ReduceMean ReduceSum Relu Sub".split()
)
"""Outputs with parameters from samples."""

_JOINED = frozenset("Concat Max Min".split())
"""Of the operators with the same parameters, those whose inputs are all data."""

_BEFORE_ACTIVATION = frozenset("Add Conv ConvTranspose Gemm MatMul Mul Sub".split())
_ACTIVATIONS = frozenset(("Clip", "Relu"))


def weighted(node: ir.Node) -> Weighted | None:
    """How the weights of a node lie, if it has constant ones."""
    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    if node.op_type == "Conv":
        return Weighted(0)
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1:
        return Weighted(1)
    if node.op_type == "Gemm":
        return Weighted(0 if node.attributes.get_int("transB", 0) else 1)
    if node.op_type == "MatMul" and len(node.inputs[1].const_value.shape) == 2:
        return Weighted(1, has_bias=False)
    return None


def refusal(node: ir.Node) -> str:
    """Why a node stays in floating point whatever its numbers are; "" if int8 engines have it."""
    if node.domain or node.op_type not in SAME | FIXED.keys() | OWN:
        return f"no int8 engine has {node.op_type}"
    for value in (*data_inputs(node), *node.outputs):
        if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
            return f"it works on {value.dtype.name.lower()}, int8 stands for float32"
    if node.op_type in ("Conv", "ConvTranspose") and weighted(node) is None:
        return "its weights are computed, or of groups"
    if node.op_type == "Gemm" and (weighted(node) is None or _scaled(node)):
        return "it scales its terms, or its weights are computed"
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and not _constant_bias(node):
        return "its bias is computed, or not one number for each channel"
    if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") != "constant":
        return "it pads with other than a constant"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "cubic":
        return "it resizes by cubic curves"
    return ""


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that int8 stands for; shapes, axes, bounds and biases are none."""
    if weighted(node) is not None or node.op_type in ("Add", "Mul", "Sub", "MatMul", "PRelu"):
        return [value for value in node.inputs[:2] if value is not None]
    if node.op_type in _JOINED:
        return [value for value in node.inputs if value is not None]
    return [value for value in node.inputs[:1] if value is not None]


def bias_add(node: ir.Node) -> int | None:
    """Which input of an `Add` is one constant number per channel of a product that nothing else reads; else None."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return None
    for at, (product, other) in enumerate((node.inputs[::-1], node.inputs)):
        maker = product.producer() if product is not None else None
        if maker is None or product is None or other is None or other.const_value is None:
            continue
        alone = len(product.uses()) == 1 and not product.is_graph_output()
        weights = maker.inputs[1] if maker.op_type == "MatMul" and weighted(maker) is not None else None
        constant = weights.const_value if weights is not None else None
        if alone and constant is not None and list(other.const_value.shape) == [constant.shape[1]]:
            return at
    return None


def runs_on(value: ir.Value) -> ir.Node | None:
    """The only reader of a value that engines compute in one go with its maker: an activation, or a product's bias."""
    maker = value.producer()
    uses = value.uses()
    if maker is None or len(uses) != 1 or value.is_graph_output():
        return None
    reader = next(iter(uses)).node
    if bias_add(reader) is not None:
        return reader if maker.op_type == "MatMul" else None
    if reader.op_type in _ACTIVATIONS and maker.op_type in _BEFORE_ACTIVATION and _saturates(reader):
        return reader
    return None


def _saturates(node: ir.Node) -> bool:
    """Whether an activation is a clip to bounds that int8 can do by saturating."""
    if node.op_type == "Relu":
        return True
    bounds = [value.const_value for value in node.inputs[1:3] if value is not None]
    return len(node.inputs) > 1 and all(bound is not None for bound in bounds)


def _scaled(node: ir.Node) -> bool:
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == 1.0 and attributes.get_float("beta", 1.0) == 1.0
    return not plain or bool(attributes.get_int("transA", 0))


def _constant_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return True
    kind = weighted(node)
    weights = node.inputs[1]
    if bias.const_value is None or kind is None or weights is None or weights.const_value is None:
        return False
    return list(bias.const_value.shape) == [weights.const_value.shape[kind.axis]]
