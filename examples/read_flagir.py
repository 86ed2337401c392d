"""Read a FlagIR model with nothing but the onnx package: list the tiers of a plan, their nodes and their weights.

    python read_flagir.py FOLDER/model.onnx [PLAN]

Written from docs/flagir.md alone, as any other reader can be.
"""

import sys
from pathlib import Path

import onnx


def read(path: Path) -> onnx.ModelProto:
    """The graph without its weights; refuses what a later major version may mean otherwise."""
    model = onnx.load(path, load_external_data=False)
    version = {entry.key: entry.value for entry in model.metadata_props}.get("flagir.version", "1.0")
    if version.split(".")[0] != "1":
        raise SystemExit(f"{path} is FlagIR {version}; this reader knows version 1")
    return model


def plans(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The tiers of each plan, in the order of the line."""
    return {plan.name: list(plan.device) for plan in model.configuration}


def tiers(model: onnx.ModelProto, plan: str) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that each tier of a plan runs, in execution order."""
    names = plans(model)[plan]
    found: dict[str, list[onnx.NodeProto]] = {name: [] for name in names}
    for node in model.graph.node:
        (stage,) = (entry.pipeline_stage for entry in node.device_configurations if entry.configuration_id == plan)
        found[names[stage]].append(node)
    return found


def weights(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
    """The weights that nodes read, inside their branches and bodies too."""
    read, graphs = set[str](), [nodes]
    while graphs:
        for node in graphs.pop():
            read.update(node.input)
            inner = [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]
            read.update(value.name for graph in inner for value in graph.output)
            graphs += [list(graph.node) for graph in inner]
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in read}


if __name__ == "__main__":
    graph = read(Path(sys.argv[1]))
    for name in sys.argv[2:] or plans(graph):
        for tier, placed in tiers(graph, name).items():
            used = weights(graph, placed)
            print(f"{name}: {tier} runs {len(placed)} nodes and holds {len(used)} weights")
            for node in placed:
                print(f"  {node.name}: {node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)}")
            for tensor in used.values():
                place = {entry.key: entry.value for entry in tensor.external_data}
                print(f"  {tensor.name}: {list(tensor.dims)} {place or 'inside'}")
