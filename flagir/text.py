"""FlagIR for people: a listing of the graph with tiers, blocks and work, and ONNX's own text form.

The listing has one line a node, in a form that stays as it is, so that two of them can be compared. The text form is
what `onnx.parser` reads; a model goes there and back without the content of its larger weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.analysis import Figures, Peak, figures_by_node, figures_of, peak_activations
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.flagir.blocks import block_graph
from flagsplit.flagir.placement import plans_on, read_placement
from flagsplit.flagir.reads import subgraphs_of
from flagsplit.flagir.static_shapes import Skeleton
from flagsplit.flagir.store import INLINE_BYTES
from flagsplit.flagir.types import dims_of
from flagsplit.flagir.version import VERSION_KEY

_MOST_SHOWN = 8
"""Elements of a constant or an attribute that are written out."""
_PLACEHOLDER_KEY = "flagsplit.text.weights"


@dataclass(frozen=True)
class NodeLine:
    """One node of a listing.

    Attributes:
        name: the node's.
        op_type: its operator, with the domain if it is not the default one.
        tier: where it runs under the plan; "" without a plan.
        block: index of its block.
        attributes: `name=value`, in order of names.
        inputs: `name type[shape]` of each input, constants with their content where they are small; "-" for none.
        outputs: the same of each output.
        figures: its cost at the sizes of the listing.
    """

    name: str
    op_type: str
    tier: str
    block: int
    attributes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    figures: Figures


@dataclass(frozen=True)
class Listing:
    """A model, ready to be printed.

    Attributes:
        model: the graph's name.
        version: FlagIR version that the model says it has; "" if it says none.
        opset: of the default domain.
        inputs: `name type[shape]`, with symbols.
        outputs: the same.
        dims: the size that each symbol was bound to.
        plans: the plans on the graph, each with its tiers.
        plan: the plan that `NodeLine.tier` is of; "" without.
        graph: the blocks.
        nodes: in order of blocks, then of the graph.
        totals: cost of the whole graph.
        peak: the most activation bytes held at once.
    """

    model: str
    version: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, int]
    plans: Mapping[str, tuple[str, ...]]
    plan: str
    graph: BlockGraph
    nodes: tuple[NodeLine, ...]
    totals: Figures
    peak: Peak

    def to_text(self) -> str:
        """The listing as lines."""
        return "\n".join([*self._head(), "", *self._body(), *self._foot()]) + "\n"

    def _head(self) -> list[str]:
        blocks = len(self.graph.blocks)
        lines = [
            f"model   {self.model}: FlagIR {self.version or '(not said)'}, opset {self.opset}, "
            f"{_count(len(self.nodes), 'node')} in {_count(blocks, 'block')}"
        ]
        lines += [f"input   {text}" for text in self.inputs]
        lines += [f"output  {text}" for text in self.outputs]
        if self.dims:
            lines.append("sizes   " + ", ".join(f"{name}={size}" for name, size in self.dims.items()))
        for name, tiers in self.plans.items():
            lines.append(f"plan    {name}: {', '.join(tiers)}{' (shown)' if name == self.plan else ''}")
        return lines

    def _body(self) -> list[str]:
        lines = []
        by_block: dict[int, list[NodeLine]] = {}
        for node in self.nodes:
            by_block.setdefault(node.block, []).append(node)
        for block in self.graph.blocks:
            tier = by_block[block.index][0].tier
            flops = sum(block.flops.values())
            lines.append(
                f"block {block.index}  {block.name}{f'  on {tier}' if tier else ''}: {flops:.0f} FLOPs, "
                f"reads {block.read_bytes} B, writes {block.write_bytes} B, weights {block.weight_bytes} B"
            )
            for node in by_block[block.index]:
                lines += _node_lines(node)
            lines.append("")
        return lines

    def _foot(self) -> list[str]:
        by_class = ", ".join(f"{name} {flops:.0f}" for name, flops in sorted(self.totals.flops.items()) if flops)
        return [
            f"total   {self.totals.total_flops:.0f} FLOPs ({by_class or 'none'})",
            f"        weights {self.totals.weight_bytes} B, peak of activations {self.peak.size_bytes} B at "
            f"{self.peak.node}",
            *(f"note    {note}" for note in self.totals.notes),
        ]


def listing(model: ir.Model, dims: dict[str, int], plan: str = "", skeleton: Skeleton | None = None) -> Listing:
    """A listing of a model.

    Args:
        model: a canonical model.
        dims: a size for every symbolic dimension (`nominal_dims`).
        plan: name of a plan on the graph whose tiers are shown; "" for none.
        skeleton: of the same model, if there is one already.

    Raises:
        ModelError: the graph does not carry the plan, or contradicts itself at these sizes.
    """
    skeleton = skeleton or Skeleton(model)
    types = skeleton.types(dims)
    graph = block_graph(model, dims, skeleton)
    placement = read_placement(model, plan) if plan else {}
    plans = plans_on(model)
    figures = figures_by_node(model, types)
    nodes = {node.name or "": node for node in model.graph}
    lines = tuple(
        _node_line(nodes[name], block.index, plans[plan][placement[name]] if plan else "", figures[name])
        for block in graph.blocks
        for name in block.nodes
    )
    return Listing(
        model=model.graph.name or "model",
        version=model.metadata_props.get(VERSION_KEY, ""),
        opset=model.opset_imports.get("", 0),
        inputs=tuple(map(value_text, model.graph.inputs)),
        outputs=tuple(map(value_text, model.graph.outputs)),
        dims=dict(dims),
        plans=plans,
        plan=plan,
        graph=graph,
        nodes=lines,
        totals=figures_of(model, types),
        peak=peak_activations(model, types),
    )


def value_text(value: ir.Value | None) -> str:
    """`name type[shape]`; of a small constant its content too; "-" for an input that is left out."""
    if value is None or not value.name:
        return "-"
    tensor = value.const_value
    if tensor is None:
        return f"{value.name} {type_text(value)}"
    shape = ",".join(map(str, dims_of(tensor)))
    text = f"{value.name} {tensor.dtype.name.lower()}[{shape}]"
    if tensor.size <= _MOST_SHOWN and tensor.dtype != ir.DataType.STRING:
        text += f" = {_elements_text(tensor)}"
    return text


def type_text(value: ir.Value) -> str:
    """`float[N,3,8,8]`, `seq(float)`; "?" where the rank or the type is not known."""
    if not isinstance(value.type, ir.TensorType):
        return "?" if value.type is None else str(value.type).lower()
    if value.shape is None:
        return f"{value.type.dtype.name.lower()}[?]"
    dims = (str(dim if isinstance(dim, int) else dim.value or "?") for dim in value.shape)
    return f"{value.type.dtype.name.lower()}[{','.join(dims)}]"


def attribute_text(attribute: ir.Attr) -> str:
    """`name=value`; of a graph or a tensor what it is, of a long list its beginning."""
    if attribute.type == ir.AttributeType.GRAPH:
        graph = attribute.as_graph()
        return f"{attribute.name}={{{', '.join(node.op_type for node in graph) or 'nothing'}}}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        shape = ",".join(map(str, dims_of(tensor)))
        shown = _elements_text(tensor) if tensor.size <= _MOST_SHOWN else "..."
        return f"{attribute.name}={tensor.dtype.name.lower()}[{shape}] {shown}"
    value = attribute.value
    if isinstance(value, bytes | str):
        return f"{attribute.name}={value!r}"
    if isinstance(value, Sequence):
        shown = ",".join(_number(each) for each in value[:_MOST_SHOWN])
        return f"{attribute.name}=[{shown}{',...' if len(value) > _MOST_SHOWN else ''}]"
    return f"{attribute.name}={_number(value)}"


def _node_line(node: ir.Node, block: int, tier: str, figures: Figures) -> NodeLine:
    return NodeLine(
        name=node.name or "",
        op_type=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
        tier=tier,
        block=block,
        attributes=tuple(attribute_text(node.attributes[name]) for name in sorted(node.attributes)),
        inputs=tuple(map(value_text, node.inputs)),
        outputs=tuple(map(value_text, node.outputs)),
        figures=figures,
    )


def _node_lines(node: NodeLine) -> list[str]:
    figures = node.figures
    attributes = f" <{', '.join(node.attributes)}>" if node.attributes else ""
    lines = [f"  {node.name}  {node.op_type}{attributes}"]
    lines += [f"      <- {text}" for text in node.inputs]
    lines += [f"      -> {text}" for text in node.outputs]
    lines.append(
        f"      {figures.total_flops:.0f} FLOPs, reads {figures.read_bytes} B, writes {figures.write_bytes} B, "
        f"weights {figures.weight_bytes} B"
    )
    return lines


def _elements_text(tensor: ir.TensorProtocol) -> str:
    elements = tensor.numpy().reshape(-1).tolist()
    text = ",".join(_number(each) for each in elements)
    return text if tensor.shape.rank() == 0 else f"[{text}]"


def _number(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def to_onnx_text(model: ir.Model) -> str:
    """The model in ONNX's text form, without the content of weights over `INLINE_BYTES` and without plans.

    ONNX's own printer and parser do the work. What they cannot say stays out: metadata of nodes and placement. A weight
    whose content is left out reads as a typed value that nobody makes; `from_onnx_text` makes it a weight of zeros.
    """
    proto = ir.to_proto(model)
    left_out = []
    for tensor in list(proto.graph.initializer):
        size = ir.from_proto(tensor).nbytes if tensor.data_type else 0
        if size > INLINE_BYTES or tensor.data_location == onnx.TensorProto.EXTERNAL:
            left_out.append(tensor.name)
            proto.graph.initializer.remove(tensor)
            if all(info.name != tensor.name for info in proto.graph.value_info):
                proto.graph.value_info.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
    kept = {tensor.name for tensor in proto.graph.initializer}
    for info in [info for info in proto.graph.value_info if info.name in kept]:
        proto.graph.value_info.remove(info)
    del proto.configuration[:]
    for node in proto.graph.node:
        del node.device_configurations[:]
    text: str = onnx.printer.to_text(proto)
    return text


def from_onnx_text(text: str) -> ir.Model:
    """A model from ONNX's text form; weights whose content was left out are zeros.

    Args:
        text: what `to_onnx_text` wrote, or any other model in that form.

    Raises:
        ModelError: it does not parse.
    """
    try:
        proto = onnx.parser.parse_model(text)
    except Exception as error:
        raise ModelError(f"expected a model in ONNX's text form: {' '.join(str(error).split())[:240]}") from error
    known = {info.name for info in proto.graph.input} | {tensor.name for tensor in proto.graph.initializer}
    known |= {name for node in proto.graph.node for name in node.output}
    model = ir.from_proto(proto)
    for info in proto.graph.value_info:
        if info.name not in known:
            _make_zeros(model, info)
    return model
