"""One vendor node as a model, and the comparison of what ONNX Runtime makes of it before and after the rewrite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tests.flagir.models import Array, assert_close, canonical, run

HALF = 4e-3
"""Relative tolerance for float16: four steps, because each standard operator rounds and the fused one does once."""


def vendor_model(
    op: str,
    inputs: Sequence[Array | None],
    *,
    constants: Sequence[int] = (),
    outputs: int | str = 1,
    opset: int = 17,
    domain: str = "com.microsoft",
    open_dims: bool = True,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node and the arrays of its graph inputs.

    Args:
        op: type of the operator.
        inputs: an array for each input of the node, None for one that is left out.
        constants: which of them are initializers.
        outputs: how many outputs, or a mask such as "1001" of those that are asked for.
        opset: of the standard domain.
        domain: of the operator.
        open_dims: declare the sizes of the inputs as symbols; of their own, so that nothing is known.
        attributes: of the node; one that is called as an argument here ends in `_`.
    """
    graph_inputs, weights, feeds, names = [], [], {}, []
    for index, array in enumerate(inputs):
        name = "" if array is None else f"i{index}"
        names.append(name)
        if array is None:
            continue
        if index in constants:
            weights.append(onnx.numpy_helper.from_array(array, name))
        else:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            dims = [f"{name}_{axis}" for axis in range(array.ndim)] if open_dims else list(array.shape)
            graph_inputs.append(onnx.helper.make_tensor_value_info(name, dtype, dims))
            feeds[name] = array
    mask = "1" * outputs if isinstance(outputs, int) else outputs
    made = [f"o{index}" if wanted == "1" else "" for index, wanted in enumerate(mask)]
    node = onnx.helper.make_node(
        op, names, made, name="vendor", domain=domain, **{name.rstrip("_"): value for name, value in attributes.items()}
    )
    results = [onnx.ValueInfoProto(name=name) for name in made if name]
    graph = onnx.helper.make_graph([node], "g", graph_inputs, results, weights)
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), feeds


def assert_rewritten(
    op: str,
    inputs: Sequence[Array | None],
    *,
    relative: float = 1e-5,
    quanta: int = 0,
    **how: Any,
) -> list[str]:
    """The canonical model answers as the vendor's node does.

    Args:
        op: type of the operator.
        inputs: see `vendor_model`.
        relative: tolerance of floats.
        quanta: by how many steps integers may differ.
        how: see `vendor_model`.

    Returns:
        The operators that it became.
    """
    proto, feeds = vendor_model(op, inputs, **how)
    wanted = run(proto, feeds, optimize=False)
    model = canonical(proto)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert {node.domain for node in made.graph.node} <= {""}
    assert dict(model.opset_imports) == {"": 23}
    assert [value.name for value in made.graph.output] == [value.name for value in proto.graph.output]
    for optimize in (False, True):
        found = run(made, feeds, optimize=optimize)
        if quanta:
            for one, other in zip(found, wanted, strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert np.abs(one.astype(np.int64) - other.astype(np.int64)).max() <= quanta
        else:
            assert_close(found, wanted, relative)
    return [node.op_type for node in made.graph.node]


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Normally distributed numbers."""
    return np.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(dtype)


def integers(
    *shape: int, dtype: Any = np.uint8, seed: int = 0, low: int | None = None, high: int | None = None
) -> Array:
    """Integers over the whole range of the type, or from `low` up to and without `high`."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng((seed, *shape))
    return rng.integers(info.min if low is None else low, info.max + 1 if high is None else high, shape).astype(dtype)


def scalar(number: float, dtype: Any = np.float32) -> Array:
    """An array without dimensions."""
    return np.array(number, dtype)
