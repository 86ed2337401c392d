"""What differs between two graphs: inputs and outputs, nodes with their attributes and edges, weights, plans.

Nodes are matched by the value that they make, since values keep their names through canonicalization while node names
may be made up; weights are compared by their bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from flagsplit.flagir.placement import plans_on, read_placement


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: "only in a", "only in b" or "differs".
        what: what it is about: an input, an output, a node, a weight, a plan, the opset.
        name: its name.
        a, b: how it is in each; empty where it is not there.
    """

    kind: Literal["only in a", "only in b", "differs"]
    what: str
    name: str
    a: str = ""
    b: str = ""

    def __str__(self) -> str:
        if self.kind == "differs":
            return f"{self.what} {self.name}: {self.a} | {self.b}"
        return f"{self.what} {self.name}: {self.kind} ({self.a or self.b})"


def changes(a: ir.Model, b: ir.Model) -> tuple[Change, ...]:
    """All differences, in the order of the first graph; none for equal graphs.

    Args:
        a, b: models; usually canonical ones, so that spelling does not count.
    """
    return (
        *_compare("opset", _opsets(a), _opsets(b)),
        *_compare("input", _values(a.graph.inputs), _values(b.graph.inputs)),
        *_compare("output", _values(a.graph.outputs), _values(b.graph.outputs)),
        *_compare("node", _nodes(a), _nodes(b)),
        *_compare("weight", _weights(a), _weights(b)),
        *_compare("plan", _plans(a), _plans(b)),
    )


def _compare(what: str, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Change]:
    for name, text in a.items():
        if name not in b:
            yield Change("only in a", what, name, a=text)
        elif b[name] != text:
            yield Change("differs", what, name, text, b[name])
    yield from (Change("only in b", what, name, b=text) for name, text in b.items() if name not in a)


def _opsets(model: ir.Model) -> dict[str, str]:
    return {domain or "ai.onnx": str(version) for domain, version in sorted(model.opset_imports.items())}


def _values(values: Iterable[ir.Value]) -> dict[str, str]:
    return {value.name or "": _type(value) for value in values}


def _type(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    dims = [str(dim) if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    return f"{dtype}[{', '.join(dims)}]"


def _nodes(model: ir.Model) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in model.graph:
        made = [value.name or "" for value in node.outputs]
        reads = ", ".join(value.name or "" if value is not None else "" for value in node.inputs)
        attributes = ", ".join(sorted(f"{name}={_attribute(value)}" for name, value in node.attributes.items()))
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found[", ".join(made)] = f"{op}({reads})" + (f" <{attributes}>" if attributes else "")
    return found


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR):
        data = ir.to_proto(attribute).SerializeToString(deterministic=True)
        return f"{attribute.type.name.lower()} {hashlib.sha256(data).hexdigest()[:12]}"
    return str(attribute.value)


def _weights(model: ir.Model) -> dict[str, str]:
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            digest = hashlib.sha256(tensor.tobytes()).hexdigest()[:12]
            found[name] = f"{_type(value) if value.shape is not None else tensor.dtype.name} sha256 {digest}"
    return found


def _plans(model: ir.Model) -> dict[str, str]:
    found = {}
    for plan, tiers in plans_on(model).items():
        placement = read_placement(model, plan)
        counts = [sum(1 for at in placement.values() if at == tier) for tier in range(len(tiers))]
        digest = hashlib.sha256(repr(sorted(placement.items())).encode()).hexdigest()[:8]
        found[plan] = " ".join(f"{tier}:{count}" for tier, count in zip(tiers, counts, strict=True)) + f" ({digest})"
    return found
