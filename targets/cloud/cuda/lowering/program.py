"""A graph as steps, and the steps as a module of PyTorch."""

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.targets.cloud.cuda.lowering.registry import lower_node
from flagsplit.targets.cloud.cuda.lowering.site import Kernel, Refused, Site, as_dtype, dtype_of
from flagsplit.targets.cloud.cuda.lowering.style import Style
from flagsplit.targets.cloud.cuda.lowering.wide import wide_values
from flagsplit.targets.cloud.cuda.sdk import import_torch, torch
from flagsplit.targets.interface import Array

_LARGEST_FLOAT16 = 65504.0
_MASK_FLOAT16 = 3e4
"""Stands in half precision for what it cannot hold, such as the -1e9 of masks: two of them still add up to a number."""


_WORTH_SHARING_BYTES = 4096
_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
"""Constants that programs of this process hold, by content and type: segments and sizes share most of theirs."""


@dataclass(frozen=True, eq=False)
class Step:
    """One node.

    Attributes:
        name: of the node.
        kernel: computes it.
        inputs: names of the values that it takes, "" for none.
        outputs: names of the values that it makes, with PyTorch's names of their types.
        last: values that nothing reads afterwards.
    """

    name: str
    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    last: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A graph, ready to run.

    Attributes:
        inputs: names, with PyTorch's names of the types that they are computed in.
        outputs: names.
        steps: in order.
        constants: arrays by name, with PyTorch's names of their types.
        images: the constants that are weights of two-dimensional convolutions.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, tuple[Array, str]]
    images: frozenset[str]


def build_program(model: ir.Model, precision: str, style: Style = Style()) -> Program:  # noqa: B008 it is frozen
    """Lower every node.

    Args:
        model: a canonical model of fixed shapes; operators of this target's passes may be in it.
        precision: PyTorch's name of the type to compute floats in; "" keeps them as they are.
        style: how operators are written that have several forms.

    Raises:
        ModelError: a node is not taken; the message names it.
    """
    graph = model.graph
    steps: list[Step] = []
    used: dict[str, ir.Value] = {}
    images: set[str] = set()
    wide = wide_values(graph) if precision else frozenset[str]()
    for node in graph:
        site = Site(node, precision, style, wide)
        try:
            kernel = lower_node(site)
            made = tuple(
                (value.name or "", site.out_dtype(at) if value.name else "") for at, value in enumerate(node.outputs)
            )
        except Refused as reason:
            raise ModelError(f"{node.name!r} ({node.op_type}) is not for the cuda target: {reason}") from None
        takes = ["" if value is None or at in site.read else value.name or "" for at, value in enumerate(node.inputs)]
        used.update({value.name or "": value for value in node.inputs if value is not None and value.name in takes})
        if node.op_type in ("Conv", "ConvRelu") and site.rank(0) == 4:
            images.add(takes[1])
        steps.append(Step(node.name or "", kernel, tuple(takes), made, ()))
    used.update({value.name or "": value for value in graph.outputs})
    constants = {
        name: (np.asarray(value.const_value.numpy()), dtype_of(value, "" if name in wide else precision))
        for name, value in used.items()
        if value.const_value is not None and value.producer() is None
    }
    inputs = tuple((value.name or "", dtype_of(value, precision)) for value in graph.inputs)
    outputs = tuple(value.name or "" for value in graph.outputs)
    return Program(inputs, outputs, _with_last(steps, outputs), constants, frozenset(images & set(constants)))


def _with_last(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Step, ...]:
    """The same steps, each with the values that are dropped after it."""
    seen, found = set(outputs), list[Step]()
    for step in reversed(steps):
        names = {*step.inputs, *(name for name, _ in step.outputs)} - seen - {""}
        seen |= names
        found.append(Step(step.name, step.kernel, step.inputs, step.outputs, tuple(sorted(names))))
    return tuple(reversed(found))


def to_module(program: Program, passed: Sequence[str], device: str) -> Any:
    """A `torch.nn.Module` that takes the inputs and gives a tuple of the outputs.

    Args:
        program: what to compute.
        passed: PyTorch's names of the types that outputs are given in.
        device: where its constants lie.
    """
    import_torch()
    tensors = {
        name: _constant(array, dtype, device, image=name in program.images)
        for name, (array, dtype) in program.constants.items()
    }
    return _module_class()(program, tuple(passed), tensors)


def _constant(array: Array, dtype: str, device: str, *, image: bool) -> Any:
    """A tensor of a constant: the same one for equal ones, as long as a program that reads it is there."""
    if array.nbytes < _WORTH_SHARING_BYTES:
        return _tensor(array, dtype, device, image=image)
    digest = hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data, digest_size=16).digest()
    key = (digest, array.dtype.str, array.shape, dtype, device, image)
    found = _SHARED.get(key)
    if found is None:
        found = _SHARED[key] = _tensor(array, dtype, device, image=image)
    return found


def _tensor(array: Array, dtype: str, device: str, *, image: bool) -> Any:
    if dtype == "float16" and array.dtype != np.float16:
        large = np.isfinite(array) & (np.abs(array) > _LARGEST_FLOAT16)
        array = np.where(large, np.copysign(_MASK_FLOAT16, array), array)
    if array.dtype.kind not in "fiub":  # NumPy has no bfloat16 of its own
        array = array.astype(np.float32)
    tensor = torch.from_numpy(np.array(array, order="C")).to(device=device, dtype=as_dtype(dtype))
    return tensor.to(memory_format=torch.channels_last) if image else tensor


def _module_class() -> Callable[..., Any]:
    class GraphModule(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, program: Program, passed: tuple[str, ...], tensors: Mapping[str, Any]) -> None:
            super().__init__()
            self._program, self._passed = program, passed
            self._buffer_of = {name: f"constant{at}" for at, name in enumerate(tensors)}
            for name, tensor in tensors.items():
                self.register_buffer(self._buffer_of[name], tensor)

        def forward(self, *given: Any) -> tuple[Any, ...]:
            program = self._program
            values = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
            for (name, dtype), tensor in zip(program.inputs, given, strict=True):
                values[name] = tensor.to(as_dtype(dtype))
            for step in program.steps:
                _run(step, values)
            outputs = zip(program.outputs, self._passed, strict=True)
            return tuple(values[name].to(as_dtype(dtype)) for name, dtype in outputs)

    return GraphModule


def _run(step: Step, values: dict[str, Any]) -> None:
    made = step.kernel(*(values[name] if name else None for name in step.inputs))
    for (name, dtype), tensor in zip(step.outputs, made if isinstance(made, (tuple, list)) else (made,), strict=False):
        if name:
            values[name] = tensor.to(as_dtype(dtype))
    for name in step.last:
        values.pop(name, None)
