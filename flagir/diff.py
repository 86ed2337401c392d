"""What differs between two graphs: inputs and outputs, nodes with their attributes and edges, weights, plans.

Nodes are matched by the value that they make, since values keep their names through canonicalization while node names
may be made up. What has no namesake is matched by structure: a value of another name that is computed alike from the
same inputs and weights was renamed. Weights are compared by their bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from flagsplit.flagir.placement import plans_on, read_placement
from flagsplit.flagir.types import dims_of


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: "only in a", "only in b", "differs" or "renamed"; what was renamed is otherwise the same.
        what: what it is about: an input, an output, a node, a weight, a plan, the opset.
        name: its name.
        a, b: how it is in each; empty where it is not there.
    """

    kind: Literal["only in a", "only in b", "differs", "renamed"]
    what: str
    name: str
    a: str = ""
    b: str = ""

    def __str__(self) -> str:
        if self.kind == "renamed":
            return f"{self.what} {self.a}: renamed to {self.b}"
        if self.kind == "differs":
            return f"{self.what} {self.name}: {self.a} | {self.b}"
        return f"{self.what} {self.name}: {self.kind} ({self.a or self.b})"


def changes(a: ir.Model, b: ir.Model) -> tuple[Change, ...]:
    """All differences, in the order of the first graph; none for equal graphs.

    Args:
        a, b: models; usually canonical ones, so that spelling does not count.
    """
    renamed = _renamed(a, b)
    return (
        *_compare("opset", _opsets(a), _opsets(b)),
        *(Change("renamed", "value", old, old, new) for old, new in renamed.items()),
        *_compare("input", _values(a.graph.inputs), _values(b.graph.inputs)),
        *_compare("output", _values(a.graph.outputs), _values(b.graph.outputs)),
        *_compare("node", _nodes(a, renamed), _nodes(b, {})),
        *_compare("weight", {renamed.get(name, name): text for name, text in _weights(a).items()}, _weights(b)),
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


def _renamed(a: ir.Model, b: ir.Model) -> dict[str, str]:
    """Names of values of `a` that `b` has not, each with the one name of `b` for what is computed alike."""
    ours, theirs = _digests(a), _digests(b)
    new: dict[str, list[str]] = {}
    for name, digest in theirs.items():
        if name not in ours:
            new.setdefault(digest, []).append(name)
    found = {name: new[digest] for name, digest in ours.items() if name not in theirs and digest in new}
    taken = Counter(names[0] for names in found.values())
    return {name: names[0] for name, names in found.items() if len(names) == 1 and taken[names[0]] == 1}


def _digests(model: ir.Model) -> dict[str, str]:
    """For each value of the main graph, a digest of how it is computed; inputs and outputs of the graph keep theirs."""
    digests: dict[ir.Value, str] = {value: f"input {value.name}" for value in model.graph.inputs}
    digests.update((value, _weight_text(value)) for value in model.graph.initializers.values())
    for node in model.graph:
        read = [digests.get(value, "captured") if value is not None else "" for value in node.inputs]
        attributes = sorted(f"{name}={_attribute(value)}" for name, value in node.attributes.items())
        text = repr((node.domain, node.op_type, read, attributes))
        for index, value in enumerate(node.outputs):
            digests[value] = hashlib.sha256(f"{index} {text}".encode()).hexdigest()
    graph_outputs = set(model.graph.outputs)
    return {value.name or "": digest for value, digest in digests.items() if value not in graph_outputs}


def _nodes(model: ir.Model, renamed: Mapping[str, str]) -> dict[str, str]:
    """Each node by the values that it makes, as text, in the names of the other model."""
    found: dict[str, str] = {}
    for node in model.graph:
        made = [renamed.get(value.name or "", value.name or "") for value in node.outputs]
        read = [value.name or "" if value is not None else "" for value in node.inputs]
        reads = ", ".join(renamed.get(name, name) for name in read)
        attributes = ", ".join(sorted(f"{name}={_attribute(value)}" for name, value in node.attributes.items()))
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found[", ".join(made)] = f"{op}({reads})" + (f" <{attributes}>" if attributes else "")
    return found


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_text(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        data = ir.to_proto(attribute).SerializeToString(deterministic=True)
        return f"{attribute.type.name.lower()} {hashlib.sha256(data).hexdigest()[:12]}"
    return str(attribute.value)


def _weights(model: ir.Model) -> dict[str, str]:
    found = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            found[name] = _weight_text(value)
    return found


def _weight_text(value: ir.Value) -> str:
    return f"input {value.name}" if value.const_value is None else _tensor_text(value.const_value)


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    dims = ", ".join(map(str, dims_of(tensor)))
    data = repr(tensor.numpy().tolist()).encode() if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
    return f"{tensor.dtype.name.lower()}[{dims}] sha256 {hashlib.sha256(data).hexdigest()[:12]}"


def _plans(model: ir.Model) -> dict[str, str]:
    found = {}
    for plan, tiers in plans_on(model).items():
        placement = read_placement(model, plan)
        counts = [sum(1 for at in placement.values() if at == tier) for tier in range(len(tiers))]
        digest = hashlib.sha256(repr(sorted(placement.items())).encode()).hexdigest()[:8]
        found[plan] = " ".join(f"{tier}:{count}" for tier, count in zip(tiers, counts, strict=True)) + f" ({digest})"
    return found
