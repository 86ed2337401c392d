"""What a function takes, gives and keeps, out of the model's description and the program's types."""

from typing import Any

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil.executor import Executor
from flagsplit.targets.mobile.mil.program import FunctionBody
from flagsplit.targets.mobile.mil.types import DictType, FeatureSpec, ListType, StateType, TensorType, ValueType

Features = tuple[tuple[FeatureSpec, ...], tuple[FeatureSpec, ...], tuple[FeatureSpec, ...]]


def read_features(description: Any, function: str, body: FunctionBody, executor: Executor) -> Features:
    """The inputs, outputs and states of a function; the program says what they are, the description how they vary.

    Args:
        description: the model's description.
        function: name of the function.
        body: it in the program.
        executor: knows the types of values.

    Raises:
        BundleError: description and program do not match.
    """
    inputs = body.inputs
    described = _described(description, function)
    shapes = {feature.name: feature for feature in (*described.input, *described.state)}
    if missing := [value.name for value in inputs if value.name not in shapes]:
        raise BundleError(
            f"function {function!r} takes {missing}, which its description lacks; the package is damaged, "
            "write it again"
        )
    takes = tuple(
        _spec(value.name, value.type, shapes[value.name]) for value in inputs if not isinstance(value.type, StateType)
    )
    states = tuple(
        _spec(value.name, value.type, shapes[value.name]) for value in inputs if isinstance(value.type, StateType)
    )
    gives = tuple(_spec(name, executor.type_of(name), None) for name in body.block.outputs)
    return takes, gives, states


def _described(description: Any, function: str) -> Any:
    for candidate in description.functions:
        if candidate.name == function:
            return candidate
    return description


def _spec(name: str, kind: ValueType, feature: Any) -> FeatureSpec:
    if isinstance(kind, StateType):
        kind = kind.wrapped
    if isinstance(kind, DictType):
        return FeatureSpec(name, kind.value.dtype, (None,))
    if isinstance(kind, ListType):
        raise BundleError(f"{name!r} is a list; the interpreter takes and gives tensors only")
    assert isinstance(kind, TensorType)
    if feature is None or feature.type.WhichOneof("Type") != "multiArrayType":
        return FeatureSpec(name, kind.dtype, kind.shape)
    array = feature.type.multiArrayType
    default = tuple(array.shape)
    choices = [tuple(shape.shape) for shape in array.enumeratedShapes.shapes]
    # The shape that the package states beside the choices is the default one.
    choices.sort(key=lambda shape: shape != default)
    ranges = tuple((int(item.lowerBound), int(item.upperBound)) for item in array.shapeRange.sizeRanges)
    return FeatureSpec(name, kind.dtype, kind.shape, ranges, tuple(choices))
