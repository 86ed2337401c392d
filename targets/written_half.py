"""Half precision on a CPU that computes in single: the roundings between nodes, written into the graph.

ONNX Runtime's CPU provider has no float16 kernel for most operators. It casts to float and back around each of them,
and drops the pairs between two, so that what one hands to the next is not rounded: the answer then depends on where a
graph is cut. Casts that the graph itself has stay. With all of them written out, a cut changes nothing.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx

from flagsplit.targets.ort_kernels import Kernel, cpu_kernels, is_for

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_AS_THEY_ARE = frozenset({"Cast", "CastLike", "Constant", "If", "Loop", "Scan"})
"""What is a rounding itself, or runs nodes of its own."""

_Kernels = Mapping[tuple[str, str], Sequence[Kernel]]
_Types = MutableMapping[str, int]


def write_out_half(model: onnx.ModelProto) -> bool:
    """Put casts around all nodes that a CPU runs in single precision instead of half, in place.

    Args:
        model: of which all values are typed.

    Returns:
        Whether there were any.
    """
    if not _has_half(model.graph):
        return False
    kernels = _known_kernels()
    if kernels is None:
        return False
    versions = {opset.domain: opset.version for opset in model.opset_import}
    return _Writer(kernels, versions, frozenset(_names(model.graph))).graph(model.graph, ChainMap())


@cache
def _known_kernels() -> _Kernels | None:
    return cpu_kernels()


def _has_half(graph: onnx.GraphProto) -> bool:
    """Whether a value of the graph itself is of half precision."""
    values = (*graph.input, *graph.output, *graph.value_info)
    if any(value.type.tensor_type.elem_type == _HALF for value in values):
        return True
    if any(tensor.data_type == _HALF for tensor in graph.initializer):
        return True
    return any(_has_half(body) for node in graph.node for body in _bodies(node))


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of all values that nodes make."""
    for node in graph.node:
        yield from node.output
        for body in _bodies(node):
            yield from _names(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


@dataclass
class _Writer:
    kernels: _Kernels
    versions: Mapping[str, int]
    taken: frozenset[str]
    made: int = 0

    def graph(self, graph: onnx.GraphProto, outer: "ChainMap[str, int]") -> bool:
        types = outer.new_child({tensor.name: tensor.data_type for tensor in graph.initializer})
        for value in (*graph.input, *graph.output, *graph.value_info):
            types[value.name] = value.type.tensor_type.elem_type
        nodes: list[onnx.NodeProto] = []
        single: dict[str, str] = {}
        changed = False
        for node in graph.node:
            for body in _bodies(node):
                changed |= self.graph(body, types)
            variables = self._without_kernel(node, types)
            if variables:
                nodes += self._in_single(node, variables, types, single)
                changed = True
            else:
                nodes.append(node)
        if changed:
            written = [_copy(node) for node in nodes]
            del graph.node[:]
            graph.node.extend(written)
        return changed

    def _without_kernel(self, node: onnx.NodeProto, types: Mapping[str, int]) -> set[str]:
        """The type variables that are half precision at a node for which there is no kernel; none if there is one."""
        version = self.versions.get(node.domain, 1)
        if node.op_type in _AS_THEY_ARE or not onnx.defs.has(node.op_type, version, node.domain):
            return set()
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        half = {_variable(schema.inputs, index) for index, name in enumerate(node.input) if types.get(name, 0) == _HALF}
        if not half:
            return set()
        for low, high, takes in self.kernels.get((node.domain, node.op_type), ()):
            fits = all("tensor(float16)" in takes.get(variable, ("tensor(float16)",)) for variable in half)
            if is_for(schema.since_version, low, high) and fits:
                return set()
        allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
        return half if all("tensor(float)" in allowed.get(variable, ()) for variable in half) else set()

    def _in_single(
        self, node: onnx.NodeProto, variables: set[str], types: _Types, single: dict[str, str]
    ) -> list[onnx.NodeProto]:
        """A node with its casts; `single` has the values that were cast already in this graph."""
        schema = onnx.defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain)
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        for index, name in enumerate(node.input):
            if types.get(name, 0) == _HALF and _variable(schema.inputs, index) in variables:
                if name not in single:
                    single[name] = self._name(name)
                    before.append(onnx.helper.make_node("Cast", [name], [single[name]], to=_FLOAT))
                node.input[index] = single[name]
        for index, name in enumerate(node.output):
            if name and _variable(schema.outputs, index) in variables:
                node.output[index] = self._name(name)
                after.append(onnx.helper.make_node("Cast", [node.output[index]], [name], to=_HALF))
        return [*before, node, *after]

    def _name(self, name: str) -> str:
        while True:
            self.made += 1
            fresh = f"{name}/single_{self.made}"
            if fresh not in self.taken:
                return fresh


def _variable(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    return str(formals[min(index, len(formals) - 1)].type_str) if formals else ""


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that outlives the list that it is in."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made
