"""The cost view of a decoder between whose layers a cut may lie: a block for each layer, over a whole answer.

The first block has the embedding too and the last one the head, since that is where `flagsplit.flagir.programs.split`
cuts. Every block is a loop: its first trip takes the prompt, each later one a token, and it holds keys and values of
its own layer. What is done with these figures is in `flagsplit.splitter.layer_plans`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue, LoopWork
from flagsplit.flagir.inference import forget_shapes, known_types, settled, weightless_proto
from flagsplit.flagir.programs.program import Program
from flagsplit.flagir.reads import activations_read, readers_of, weights_read
from flagsplit.flagir.types import ValueType
from flagsplit.flagir.work import Types, launches_of, work_of

_TOKEN_BYTES = 8
_FLOAT_BYTES = 4


def layer_chain(program: Program, prompt: int, tokens: int) -> BlockGraph:
    """A decoder-only program as a chain of layers.

    Args:
        program: a decoder without encoder.
        prompt: tokens of the prompt, at least 1.
        tokens: tokens of the answer, the stop token left out.

    Raises:
        ModelError: the program has an encoder, or its layers cannot be told apart.
    """
    facts, model = program.facts, program.graphs["step"]
    if facts.kind != "decoder-only":
        raise ModelError(f"expected a decoder without encoder to divide between layers, {facts.name} is {facts.kind}")
    layers = _layers(model, facts.layers, facts.width)
    chunks = [_types(model, chunk, past) for chunk, past in ((prompt, 0), (1, prompt), (1, prompt + tokens - 1))]
    kv = 2 * _FLOAT_BYTES * facts.kv_heads * facts.head_size
    rows = _FLOAT_BYTES * facts.width * (prompt + tokens)
    blocks, values = [], [BlockValue("prompt", _TOKEN_BYTES * prompt, GRAPH_INPUT, (0,))]
    counted: set[ir.Value] = set()
    for at, nodes in enumerate(layers):
        last = at == len(layers) - 1
        sizes = values[-1].size_bytes, _TOKEN_BYTES * (tokens + 1) if last else rows
        blocks.append(_block(at, nodes, chunks, _Answer(prompt, tokens, kv), sizes, counted))
        consumers = () if last else (at + 1,)
        values.append(BlockValue("tokens" if last else f"rows.{at + 1}", sizes[1], at, consumers, is_output=last))
    return BlockGraph(facts.name, tuple(blocks), tuple(values), {"prompt": prompt, "tokens": tokens})


@dataclass(frozen=True)
class _Answer:
    """Tokens of the prompt and of the answer, and bytes of a token's keys and values in a layer."""

    prompt: int
    tokens: int
    kv_bytes: int


def _block(
    index: int,
    nodes: Sequence[ir.Node],
    chunks: Sequence[Types],
    answer: _Answer,
    sizes: tuple[int, int],
    counted: set[ir.Value],
) -> Block:
    first, second, last = ([work_of(node, types) for node in nodes] for types in chunks)
    shares = ((first, 1.0), (second, answer.tokens / 2), (last, answer.tokens / 2))
    flops: dict[str, float] = {}
    for works, share in shares:
        for work in works:
            for name, count in work.by_class.items():
                if count:
                    flops[name] = flops.get(name, 0.0) + share * count
    touched = [sum(work.touched_weight_bytes for work in works) for works in (first, last)]
    own = [weight for weight in dict.fromkeys(w for node in nodes for w in weights_read(node)) if weight not in counted]
    counted.update(own)
    name = f"layer.{index}"
    loop = LoopWork(
        name=name,
        trips=answer.tokens + 1,
        basis="said",
        flops=sum(work.flops for works in (second, last) for work in works) / 2,
        weight_bytes=touched[1],
        captured_bytes=0,
        state_bytes=answer.prompt * answer.kv_bytes,
        growth_bytes=answer.kv_bytes,
        scratch_bytes=0,
        launches=launches_of(nodes),
    )
    return Block(
        index=index,
        name=name,
        nodes=tuple(node.name or "" for node in nodes),
        op_types=tuple(node.op_type for node in nodes),
        flops=flops,
        read_bytes=sizes[0],
        write_bytes=sizes[1],
        weight_bytes=sum(weight.const_value.nbytes for weight in own if weight.const_value is not None),
        touched_weight_bytes=touched[0] + answer.tokens * touched[1],
        loops=(loop,),
    )


def _types(model: ir.Model, chunk: int, past: int) -> dict[str, ValueType]:
    """The types of a step's values at a number of tokens and of those before."""
    proto = weightless_proto(model, declared=False)
    sizes: Mapping[str, int] = {"batch": 1, "chunk": chunk, "past": past}
    named = {value.name: value.shape for value in model.graph.inputs}
    axes = {"tokens": ("batch", "chunk"), "past.0.key": ("batch", None, "past")}
    symbols = {
        str(dim.value): sizes[role]
        for name, roles in axes.items()
        for dim, role in zip(named[name] or (), roles, strict=False)
        if role is not None and isinstance(dim, ir.SymbolicDim)
    }
    for info in proto.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = symbols.get(dim.dim_param, 1)
    forget_shapes(proto.graph)
    return known_types(settled(proto).graph)


def _layers(model: ir.Model, count: int, width: int) -> list[list[ir.Node]]:
    """The nodes of each layer, in order; what several layers read belongs to the first of them."""
    nodes = list(model.graph)
    outputs = {value.name: value for value in model.graph.outputs}
    stage = dict.fromkeys(nodes, count)
    for layer in reversed(range(count)):
        made = (outputs[f"new.{layer}.{part}"] for part in ("key", "value"))
        stage.update(dict.fromkeys(_makers(made), layer))
    owner = dict.fromkeys(nodes, count - 1)
    owner.update({node: at for node, at in stage.items() if at < count})
    readers = readers_of(model.graph)
    for layer in range(1, count):
        made = (value for node in nodes if stage[node] == layer for value in node.outputs)
        rows = next((value for value in made if _is_rows(value, layer, width, stage, readers)), None)
        if rows is None:
            raise ModelError(f"nothing in {model.graph.name} has all that layer {layer} reads of those before")
        owner.update({node: layer - 1 for node in _makers([rows]) if stage[node] == layer})
    return [[node for node in nodes if owner[node] == layer] for layer in range(count)]


def _is_rows(
    value: ir.Value,
    layer: int,
    width: int,
    stage: Mapping[ir.Node, int],
    readers: Mapping[ir.Value, Sequence[ir.Node]],
) -> bool:
    """Whether a layer's keys read it and so does what goes around its attention."""
    if value.shape is None or len(value.shape) != 3 or value.shape[2] != width:
        return False
    stages = [stage[node] for node in readers.get(value, ())]
    return layer in stages and any(at > layer for at in stages)


def _makers(values: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = list(values)
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            todo += activations_read(node)
    return found
