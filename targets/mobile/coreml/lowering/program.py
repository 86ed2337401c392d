"""From a chip part of a canonical model to one function of a Core ML program (MIL).

The operators are in `ops/`, what they refuse is asked from `registry.refusal` first. Every output of every node is
checked against the type that ONNX gives it. The program is built in the types of the model: precision is not
decided here. Each operation has the name of its node as its scope, which the passes of coremltools hand on.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ConfigError, InternalError, ModelError
from flagsplit.targets.mobile.coreml.lowering.chains import chain_of, lower_chain
from flagsplit.targets.mobile.coreml.lowering.facts import sizes_of, unfit_value
from flagsplit.targets.mobile.coreml.lowering.registry import has_rule, refusal, rules
from flagsplit.targets.mobile.coreml.lowering.site import MIL_NAMES, Site, Var, mil_name
from flagsplit.targets.written_out import write_out

_IO_TYPES = {
    "float32": "float32",
    "float16": "float16",
    "int32": "int32",
    "int64": "int32",
    "bool": "int32",
    "int8": "int32",
    "uint8": "int32",
}


def io_dtype(dtype: str) -> str:
    """The NumPy element type in which a program takes or gives a tensor of another.

    Raises:
        ModelError: programs have no tensors of this type.
    """
    if dtype not in _IO_TYPES:
        raise ModelError(f"a Core ML program takes and gives {', '.join(_IO_TYPES)}; came {dtype}")
    return _IO_TYPES[dtype]


def io_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a program takes or gives a tensor: a scalar is passed as one element."""
    return shape or (1,)


def build_program(model: ir.Model, names: Mapping[str, str], *, function: str = "main", opset: Any = None) -> Any:
    """Lower a model.

    Args:
        model: canonical, of fixed shapes, without functions; stays as it is.
        names: what its inputs and outputs are called in the program, identifiers of Core ML.
        function: the name of the program's function.
        opset: a `coremltools.target`, iOS17 or newer; by default iOS18.

    Returns:
        A `coremltools.converters.mil.Program` with one function.

    Raises:
        ModelError: a node cannot be lowered; the message names it.
        ConfigError: coremltools is not installed.
        InternalError: a lowering is wrong.
    """
    try:
        import coremltools as ct
        from coremltools.converters.mil.mil import Builder, Function, Program
    except ImportError as error:
        raise ConfigError(
            "the coreml target needs coremltools, which is not installed; pip install 'flagsplit[coreml]'"
        ) from error
    written = model.clone()
    write_out(written, has_rule)
    _check(written)
    Builder.name_count.clear()  # so that the same model gives the same names
    program = Program()
    inputs = {names[value.name or ""]: _placeholder(Builder, value) for value in written.graph.inputs}
    with Function(inputs, opset_version=ct.target.iOS18 if opset is None else opset) as made:
        values = {value: _taken(Builder, made.inputs[names[value.name or ""]], value) for value in written.graph.inputs}
        for node in written.graph:
            _lower(node, values)
        outputs = [
            _given(Site(_maker(value), values), values[value], value, names[value.name or ""])
            for value in written.graph.outputs
        ]
        made.set_outputs(outputs)
    _keep_apart(made, {*inputs, *(names[value.name or ""] for value in written.graph.outputs)})
    program.add_function(function, made)
    return program


def _check(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if reason := unfit_value(value, bytes_too=True):
            raise ModelError(f"input {value.name!r} cannot be taken by a Core ML program: {reason}")
    for node in model.graph:
        if why_not := refusal(node):
            raise ModelError(f"node {node.name!r} ({node.op_type}) cannot be lowered to Core ML: {why_not}")


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ModelError(f"output {value.name!r} is an input or a constant; expected one that a node makes")
    return node


def _placeholder(mb: Any, value: ir.Value) -> Any:
    assert value.dtype is not None
    kind = io_dtype(value.dtype.numpy().name)
    dtype = {"float32": "fp32", "float16": "fp16", "int32": "int32"}[kind]
    from coremltools.converters.mil.mil import types

    return mb.placeholder(io_shape(sizes_of(value)), dtype=types.string_to_builtin(dtype))


def _taken(mb: Any, var: Var, value: ir.Value) -> Var:
    """An input in the shape and type that the graph has for it."""
    if not sizes_of(value):
        var = mb.squeeze(x=var, axes=[0])
    if value.dtype == ir.DataType.BOOL:
        var = mb.not_equal(x=var, y=np.int32(0))
    return var


def _given(site: Site, var: Var, value: ir.Value, name: str) -> Var:
    """An output in the shape and type that programs give, under its name."""
    mb = site.mb
    if value.dtype == ir.DataType.BOOL:
        var = mb.cast(x=var, dtype="int32")
    if not sizes_of(value):
        var = mb.expand_dims(x=var, axes=[0])
    return mb.identity(x=var, name=name)


def _lower(node: ir.Node, values: dict[ir.Value, Var]) -> None:
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    chain = chain_of(node)
    if chain is not None and node is not chain.last:
        return
    site = Site(node if chain is None else chain.first, values)
    try:
        with site.mb.scope(ScopeInfo(ScopeSource.TORCHSCRIPT_MODULE_NAME, node.name or node.op_type)):
            made = rules()[node.op_type].lower(site) if chain is None else lower_chain(site, chain)
    except Exception as error:
        raise InternalError(
            f"the lowering of {node.op_type} broke at node {node.name!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}; please report it with the model"
        ) from error
    outputs = list(made) if isinstance(made, tuple | list) else [made]
    for value, var in zip(node.outputs, outputs, strict=False):
        if var is not None and value.name:
            _check_type(node, value, var)
            values[value] = var
    for value in node.outputs:
        if value.name and value not in values and (value.uses() or value.is_graph_output()):
            raise InternalError(f"the lowering of {node.op_type} gave no {value.name!r} at node {node.name!r}")


def _check_type(node: ir.Node, value: ir.Value, var: Var) -> None:
    assert value.dtype is not None
    want, have = (MIL_NAMES[value.dtype], sizes_of(value)), (mil_name(var), tuple(var.shape))
    if want != have:
        raise InternalError(
            f"the lowering of {node.op_type} at node {node.name!r} made {value.name!r} of {have[0]} {list(have[1])}; "
            f"expected {want[0]} {list(want[1])}; please report it with the model"
        )


def _keep_apart(function: Any, taken: Collection[str]) -> None:
    """Give inner variables other names than inputs and outputs have."""
    ends = {id(var) for var in (*function.inputs.values(), *function.outputs)}
    for operation in function.operations:
        for var in operation.outputs:
            if id(var) not in ends and var.name in taken:
                var.name = f"{var.name}__inner"
