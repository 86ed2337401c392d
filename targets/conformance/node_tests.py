"""The ONNX project's own node tests, from the installed onnx package, as cases.

The package makes them when it is asked for the first time, which takes some seconds. Which of them apply is decided
here: those whose inputs and outputs are tensors of the types in `cases.DTYPES`.
"""

import warnings
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx

from flagsplit.targets.conformance.cases import DTYPES, Case, operators_of
from flagsplit.targets.interface import Array

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators whose answers are drawn at random."""


def node_cases(operators: Collection[str] = (), names: Collection[str] = ()) -> list[Case]:
    """The node tests, sorted by name.

    Args:
        operators: only those that have one of these operators; all if there are none.
        names: only these.

    Returns:
        One case per test, those that do not apply included, with the reason in `Case.skip`.
    """
    return [
        case
        for case in _all()
        if (not operators or not set(operators).isdisjoint(case.operators)) and (not names or case.name in names)
    ]


@cache
def _all() -> tuple[Case, ...]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests overflow and divide by zero on purpose
        tests = load_model_tests(kind="node")
    return tuple(sorted((_case(test) for test in tests), key=lambda case: case.name))


def _case(test: Any) -> Case:
    model: onnx.ModelProto = test.model
    given, wanted = test.data_sets[0]
    skip = next(filter(None, map(_why_not, (*model.graph.input, *model.graph.output))), "")
    operators = operators_of(model)
    if skip:
        return Case(test.name, "node", operators, model, skip=skip)
    inputs = {info.name: _array(each) for info, each in zip(model.graph.input, given, strict=True)}
    outputs = {info.name: _array(each) for info, each in zip(model.graph.output, wanted, strict=True)}
    return Case(test.name, "node", operators, model, inputs, outputs, random=_is_random(model))


def _array(value: Any) -> Array:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _why_not(info: onnx.ValueInfoProto) -> str:
    """Why a test with this input or output does not apply."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"it has a value that is a {str(kind).removesuffix('_type').replace('_', ' ')}, not a tensor"
    name = onnx.TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower()
    name = {"float": "float32", "double": "float64"}.get(name, name)
    return "" if name in DTYPES else f"it has a tensor of {name}; cases are of {', '.join(DTYPES)}"


def _is_random(model: onnx.ModelProto) -> bool:
    """A Dropout that is told to train draws at random too."""
    nodes: Sequence[onnx.NodeProto] = model.graph.node
    return not RANDOM.isdisjoint(operators_of(model)) or any(
        node.op_type == "Dropout" and len(node.input) > 2 for node in nodes
    )
