"""FlagIR for people: a listing of the graph with tiers, blocks and work, and ONNX's own text form.

The listing has a line for each node, in a form that stays as it is, so that two of them can be compared. The text form
is what `onnx.printer` writes and `onnx.parser` reads; a model goes there and back without the content of its weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.blocks import block_graph
from flagsplit.flagir.figures import Figures, figures_by_node, figures_of
from flagsplit.flagir.liveness import peak_activations
from flagsplit.flagir.placement import plans_on, read_placement
from flagsplit.flagir.static_shapes import Skeleton, nominal_dims
from flagsplit.flagir.store import INLINE_BYTES
from flagsplit.flagir.tensor_data import check_tensor
from flagsplit.flagir.types import dims_of
from flagsplit.flagir.version import VERSION_KEY

_MOST_SHOWN = 8
"""Elements of a constant or of an attribute that are written out."""


def describe(model: ir.Model, dims: Mapping[str, int] | None = None, plan: str = "") -> dict[str, Any]:
    """What a listing says, as JSON data.

    Args:
        model: a canonical model.
        dims: sizes for symbolic dimensions; nominal ones for those left out.
        plan: name of a plan on the graph whose tiers are shown; "" for none.

    Raises:
        ModelError: the graph does not carry the plan, has no such dimension, or contradicts itself at these sizes.
    """
    placement = read_placement(model, plan) if plan else {}
    skeleton = Skeleton(model)
    sizes = nominal_dims(skeleton, dict(dims or {}))
    types = skeleton.types(sizes)
    graph = block_graph(model, sizes, skeleton)
    plans = plans_on(model)
    figures, nodes = figures_by_node(model, types), {node.name or "": node for node in model.graph}
    tiers = {name: plans[plan][tier] for name, tier in placement.items()}
    totals, peak = figures_of(model, types), peak_activations(model, types)
    return {
        "model": model.graph.name or "model",
        "version": model.metadata_props.get(VERSION_KEY, ""),
        "opset": model.opset_imports.get("", 0),
        "inputs": [_value_data(value) for value in model.graph.inputs],
        "outputs": [_value_data(value) for value in model.graph.outputs],
        "dims": sizes,
        "plans": {name: list(each) for name, each in plans.items()},
        "plan": plan,
        **_figures_data(totals),
        "flops_by_class": {name: flops for name, flops in sorted(totals.flops.items()) if flops},
        "peak_activation_bytes": peak.size_bytes,
        "peak_node": peak.node,
        "notes": list(totals.notes),
        "blocks": [
            {
                "index": block.index,
                "name": block.name,
                "tier": tiers.get(block.nodes[0], ""),
                "flops": sum(block.flops.values()),
                "read_bytes": block.read_bytes,
                "write_bytes": block.write_bytes,
                "weight_bytes": block.weight_bytes,
                "nodes": [_node_data(nodes[name], tiers.get(name, ""), figures[name]) for name in block.nodes],
            }
            for block in graph.blocks
        ],
    }


def listing(model: ir.Model, dims: Mapping[str, int] | None = None, plan: str = "") -> str:
    """A model as text: its inputs, outputs, sizes and plans, then its nodes by block, then the totals.

    Args:
        model: a canonical model.
        dims: sizes for symbolic dimensions; nominal ones for those left out.
        plan: name of a plan on the graph whose tiers are shown; "" for none.

    Raises:
        ModelError: as `describe`.
    """
    data = describe(model, dims, plan)
    lines = [*_head(data)]
    for block in data["blocks"]:
        tier = f" [{block['tier']}]" if block["tier"] else ""
        lines += ["", f"block {block['index']} {block['name']}{tier}  {_figures_text(block)}"]
        lines += [_node_text(node) for node in block["nodes"]]
    by_class = ", ".join(f"{name} {flops:.0f}" for name, flops in data["flops_by_class"].items())
    lines += ["", f"total  {_figures_text(data)}"]
    lines += [f"  FLOP by class: {by_class}"] if by_class else []
    lines += [f"  peak of activations: {data['peak_activation_bytes']} B at {data['peak_node']}"]
    lines += [f"  note: {note}" for note in data["notes"]]
    return "\n".join(lines) + "\n"


def _head(data: dict[str, Any]) -> list[str]:
    blocks, nodes = len(data["blocks"]), sum(len(block["nodes"]) for block in data["blocks"])
    version = f"FlagIR {data['version']}" if data["version"] else "no FlagIR version"
    return [
        f"{data['model']}: {version}, opset {data['opset']}, {_count(nodes, 'node')} in {_count(blocks, 'block')}",
        *(f"  input  {each['name']}: {each['type']}" for each in data["inputs"]),
        *(f"  output {each['name']}: {each['type']}" for each in data["outputs"]),
        *([f"  sizes  {', '.join(f'{name}={size}' for name, size in data['dims'].items())}"] if data["dims"] else ()),
        *(f"  plan   {name} on {' - '.join(tiers)}" for name, tiers in data["plans"].items()),
    ]


def _node_text(node: dict[str, Any]) -> str:
    made = ", ".join(f"{value['name']}: {value['type']}" if value["name"] else "-" for value in node["outputs"])
    read = ", ".join(_read_text(value) for value in node["inputs"])
    attributes = ", ".join(f"{name}={text}" for name, text in node["attributes"].items())
    call = f"{node['op']}({read})" + (f" <{attributes}>" if attributes else "")
    return f"  {made} = {call}  # {node['name']}: {_figures_text(node)}"


def _read_text(value: dict[str, Any]) -> str:
    if not value["name"]:
        return "-"
    if "weight_type" not in value:
        return str(value["name"])
    return f"%{value['name']} {value['weight_type']}" + (f" {value['content']}" if "content" in value else "")


def _figures_text(data: dict[str, Any]) -> str:
    return (
        f"{data['flops']:.0f} FLOP, in {data['read_bytes']} B, out {data['write_bytes']} B, "
        f"weights {data['weight_bytes']} B"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _figures_data(figures: Figures) -> dict[str, Any]:
    return {
        "flops": figures.total_flops,
        "read_bytes": figures.read_bytes,
        "write_bytes": figures.write_bytes,
        "weight_bytes": figures.weight_bytes,
    }


def _node_data(node: ir.Node, tier: str, figures: Figures) -> dict[str, Any]:
    return {
        "name": node.name or "",
        "op": f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
        "tier": tier,
        "attributes": {name: _attribute_text(node.attributes[name]) for name in sorted(node.attributes)},
        "inputs": [_value_data(value) for value in node.inputs],
        "outputs": [_value_data(value) for value in node.outputs],
        **_figures_data(figures),
    }


def _value_data(value: ir.Value | None) -> dict[str, Any]:
    """Name and type; of a constant its own type, and its content where that is short."""
    if value is None or not value.name:
        return {"name": "", "type": ""}
    tensor = value.const_value
    if tensor is None:
        return {"name": value.name, "type": type_text(value)}
    kind = f"{tensor.dtype.name.lower()}[{', '.join(map(str, dims_of(tensor)))}]"
    data = {"name": value.name, "type": kind, "weight_type": kind}
    if tensor.size <= _MOST_SHOWN and tensor.dtype != ir.DataType.STRING:
        data["content"] = _elements_text(tensor)
    return data


def type_text(value: ir.Value) -> str:
    """`float[N, 3, 8, 8]`, `Sequence(Tensor(FLOAT))`; `?` for what is not known."""
    if not isinstance(value.type, ir.TensorType):
        return "?" if value.type is None else str(value.type)
    dims = (
        "?" if value.shape is None else ", ".join(str(d) if isinstance(d, int) else d.value or "?" for d in value.shape)
    )
    return f"{value.type.dtype.name.lower()}[{dims}]"


def _attribute_text(attribute: ir.Attr) -> str:
    """Of a graph the operators, of a tensor or a long list the beginning."""
    if attribute.type == ir.AttributeType.GRAPH:
        return f"{{{', '.join(node.op_type for node in attribute.as_graph()) or 'nothing'}}}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        shape = ", ".join(map(str, dims_of(tensor)))
        return f"{tensor.dtype.name.lower()}[{shape}] " + (
            _elements_text(tensor) if tensor.size <= _MOST_SHOWN else "..."
        )
    if isinstance(attribute.value, bytes | str):
        return repr(attribute.value)
    if isinstance(attribute.value, Sequence):
        shown = ", ".join(map(_element_text, attribute.value[:_MOST_SHOWN]))
        return f"[{shown}{', ...' if len(attribute.value) > _MOST_SHOWN else ''}]"
    return _element_text(attribute.value)


def _elements_text(tensor: ir.TensorProtocol) -> str:
    text = ", ".join(map(_element_text, tensor.numpy().reshape(-1).tolist()))
    return f"{{{text}}}"


def _element_text(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def to_onnx_text(model: ir.Model) -> str:
    """The model in ONNX's text form.

    Weights that are mapped are referred to; the content of others over `INLINE_BYTES` is left out, and only their types
    are written. Plans stay out, for which the form has no words.
    """
    proto = ir.to_proto(model)
    large = [tensor for tensor in proto.graph.initializer if _is_large(tensor)]
    for tensor in large:
        proto.graph.initializer.remove(tensor)
    known = {tensor.name for tensor in (*proto.graph.initializer, *large)}
    for info in [info for info in proto.graph.value_info if info.name in known]:
        proto.graph.value_info.remove(info)
    proto.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in large
    )
    del proto.configuration[:]
    for node in proto.graph.node:
        del node.device_configurations[:]
    text: str = onnx.printer.to_text(proto)
    return text


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() > INLINE_BYTES + 256


def from_onnx_text(text: str, folder: Path | None = None) -> ir.Model:
    """A model from ONNX's text form; weights whose content was left out are zeros.

    Args:
        text: what `to_onnx_text` wrote, or any other model in that form.
        folder: where the weights lie that the text refers to; without it they are not looked for.

    Raises:
        ModelError: it does not parse, or refers to what is not in the folder.
    """
    try:
        proto = onnx.parser.parse_model(text)
        left_out = _unmade(proto.graph)
        proto.graph.input.extend(left_out)
        model = ir.from_proto(proto)
    except Exception as error:
        said = " ".join(str(error).split())[:240]
        raise ModelError(f"expected a model in ONNX's text form, the parser says: {said}") from error
    _make_zeros(model, {info.name for info in left_out})
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor) and folder is not None:
            value.const_value.base_dir = folder
            check_tensor(value.const_value, folder.resolve())
    return model


def _unmade(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Values that have a type and nothing that makes them."""
    made = {value.name for value in (*graph.input, *graph.initializer)}
    made.update(name for node in graph.node for name in node.output)
    return [info for info in graph.value_info if info.name not in made]


def _make_zeros(model: ir.Model, names: set[str]) -> None:
    """Make weights of these inputs."""
    for value in [value for value in model.graph.inputs if value.name in names]:
        model.graph.inputs.remove(value)
        dtype = value.dtype or ir.DataType.FLOAT
        dims = [dim if isinstance(dim, int) else 0 for dim in value.shape or ()]
        array = np.broadcast_to(np.zeros((), dtype.numpy()), dims)
        value.const_value = ir.Tensor(array, dtype, name=value.name)
        model.graph.register_initializer(value)
