"""The ONNX project's node tests, many in one model, so that bringing them into canonical form and saving cost once."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import ModelProto, TensorProto
from onnx.backend.test.loader import load_model_tests

from flagsplit import flagir
from flagsplit.flagir.specialize import settle
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.lowering.registry import refusal, rules

DTYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
_NEEDED = {"OneHot": (1,), "Dropout": (1, 2), "CenterCropPad": (1,), "AffineGrid": (1,)}
"""Operands that decide shapes, beside those that the lowering wants constant."""


@dataclass(frozen=True, eq=False)
class NodeTest:
    """A test of one node: arrays by the names that they have in the joined model."""

    name: str
    opset: int
    node: onnx.NodeProto
    inputs: Mapping[str, Array]
    constants: Mapping[str, Array]
    outputs: Mapping[str, Array]


@cache
def node_tests() -> tuple[NodeTest, ...]:
    """All tests of one node of a standard operator that is lowered, of types that Core ML programs have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    return tuple(sorted(filter(None, map(_test, tests)), key=lambda test: test.name))


def _array(value: Any) -> Array:
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _test(test: Any) -> NodeTest | None:
    model: ModelProto = test.model
    ends = (*model.graph.input, *model.graph.output)
    if len(model.graph.node) != 1 or any(info.type.tensor_type.elem_type not in DTYPES for info in ends):
        return None
    node = onnx.NodeProto()
    node.CopyFrom(model.graph.node[0])
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if node.domain or node.op_type not in rules() or not versions[""] >= 7 or test.name.startswith("test_training"):
        return None
    node.name = test.name
    constant = {node.input[at] for at in _constant_operands(node.op_type) if at < len(node.input)}
    given, wanted = test.data_sets[0]
    arrays = {info.name: _array(array) for info, array in zip(model.graph.input, given, strict=True)}
    answers = {_called(test.name, i.name): _array(a) for i, a in zip(model.graph.output, wanted, strict=True)}
    inputs = {_called(test.name, name): array for name, array in arrays.items() if name not in constant}
    constants = {_called(test.name, name): array for name, array in arrays.items() if name in constant}
    for names in (node.input, node.output):
        names[:] = [_called(test.name, name) if name else "" for name in names]
    return NodeTest(test.name, versions[""], node, inputs, constants, answers)


def _constant_operands(operator: str) -> Iterable[int]:
    return sorted({*rules()[operator].const, *_NEEDED.get(operator, ())})


def _called(test: str, value: str) -> str:
    return f"{test}__{value}"


def joined(tests: Iterable[NodeTest]) -> Iterator[tuple[ir.Model, list[NodeTest]]]:
    """Canonical models of fixed shapes, one for each opset, and the tests in each."""
    groups = defaultdict(list)
    for test in tests:
        groups[test.opset].append(test)
    for opset, group in sorted(groups.items()):
        proto = ModelProto(ir_version=11)
        proto.opset_import.append(onnx.helper.make_opsetid("", opset))
        proto.graph.name = "tests"
        for test in group:
            _add(proto.graph, test)
        model = ir.serde.deserialize_model(proto)
        flagir.canonicalize(model)
        settle(model)
        yield model, group


def _add(graph: onnx.GraphProto, test: NodeTest) -> None:
    graph.node.append(test.node)
    for name, array in test.inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in test.constants.items())
    for name, array in test.outputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))


def take_out_refused(model: ir.Model, tests: Iterable[NodeTest]) -> dict[str, str]:
    """Leave only tests that can be lowered; the reasons of the others, by test."""
    outputs = {value.name: value for value in model.graph.outputs}
    reasons: dict[str, str] = {}
    for test in tests:
        for name in test.outputs:
            reason = _reason(outputs[name])
            if reason:
                reasons[test.name] = reason
    for value in [value for value in model.graph.outputs if (value.name or "").split("__")[0] in reasons]:
        model.graph.outputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)
    return reasons


def _reason(output: ir.Value) -> str:
    """Why what makes an output cannot be lowered; "" if it can."""
    todo, seen = [output], set[ir.Value]()
    while todo:
        node = todo.pop().producer()
        if node is None:
            continue
        if reason := refusal(node):
            return f"{node.op_type}: {reason}"
        todo.extend(value for value in node.inputs if value is not None and value not in seen)
        seen.update(value for value in node.inputs if value is not None)
    return ""
