"""Decoders as exporters write them, brought into slot form.

The convention is that of Hugging Face's exporters: `input_ids`, `attention_mask` over cache and chunk, `position_ids`,
`past_key_values.I.key` and `.value`; `logits` of every token and `present.I.key` and `.value`, the whole cache again.
Slot form gives back only what is new, and only the logits asked for. The mask is made of the lengths of the caches, so
that rows of other lengths fit into one batch; therefore positions must not come from the size of the cache.
"""

import re

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.canonical import canonicalize
from flagsplit.flagir.programs.layers import count_up, length_of
from flagsplit.flagir.programs.writer import REAL, WHOLE, GraphWriter, declared
from flagsplit.flagir.reads import activations_read

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TOKENS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"


def slot_form(model: ir.Model) -> ir.Model:
    """The graph `step` of an exported decoder without encoder.

    Args:
        model: as `read_model` gives it; it stays as it is, and `step` shares its weights.

    Raises:
        ModelError: the model does not keep to the convention, or takes positions from the size of its cache.
    """
    whole = model.clone()
    canonicalize(whole)
    inputs = {value.name or "": value for value in whole.graph.inputs}
    caches = _caches(inputs)
    _check_inputs(inputs, caches)
    _check_positions(whole.graph, inputs)
    logits, news = _give_back_what_is_new(whole.graph, caches)
    g = GraphWriter("step", {})
    tokens, positions = (g.input(name, WHOLE, ["batch", "chunk"]) for name in ("tokens", "positions"))
    lengths, last = (g.input(name, WHOLE, ["batch"]) for name in ("past_lengths", "last"))
    pasts = {name: g.input(_slot("past", name), REAL, _cache_dims(inputs[name], "past")) for name in caches}
    mask = _mask(g, next(iter(pasts.values())), tokens, lengths)
    given = {
        _TOKENS: tokens,
        _MASK: g.op("Cast", mask, to=inputs[_MASK].dtype),
        _POSITIONS: positions,
        **pasts,
    }
    made = g.inline(whole, "decoder", {name: given[name] for name in inputs})
    outputs = [declared(made[news[name]], _cache_dims(inputs[name], "chunk")) for name in caches]
    for name, value in zip(caches, outputs, strict=True):
        value.name = _slot("new", name)
    return g.model([_only_last(g, made[logits], last), *outputs])


def _caches(inputs: dict[str, ir.Value]) -> list[str]:
    """The names of the caches, layer by layer, keys first."""
    found = {(int(match[1]), match[2]): name for name in inputs if (match := _PAST.fullmatch(name))}
    layers = len(found) // 2
    wanted = [(layer, part) for layer in range(layers) for part in ("key", "value")]
    if not layers or sorted(found) != wanted:
        raise ModelError(
            "expected a decoder with inputs past_key_values.0.key, past_key_values.0.value and so on, "
            f"came {', '.join(inputs)[:200]}; export it with its cache"
        )
    return [found[each] for each in wanted]


def _check_inputs(inputs: dict[str, ir.Value], caches: list[str]) -> None:
    for name in (_TOKENS, _MASK):
        if name not in inputs:
            raise ModelError(f"expected a decoder with an input {name!r}, it has none; export it with that input")
    others = inputs.keys() - {_TOKENS, _MASK, _POSITIONS, *caches}
    if others:
        hint = "export it without merging" if "use_cache_branch" in others else "only decoders without encoder are read"
        raise ModelError(f"a step does not know what to give to the input {min(others)!r}; {hint}")
    for name in caches:
        value = inputs[name]
        sizes = [isinstance(dim, int) for dim in value.shape or ()]
        if value.dtype != REAL or sizes != [False, True, False, True]:
            raise ModelError(
                f"expected {name} to be float32 of [batch, heads, length, size] with heads and size fixed, "
                f"came {value.dtype} {value.shape}; export it in float32 with batch and length open"
            )


def _check_positions(graph: ir.Graph, inputs: dict[str, ir.Value]) -> None:
    """Positions must be an input, or counted from the mask: the size of the cache is that of the longest row."""
    given = inputs.get(_POSITIONS)
    if given is not None and given.uses():
        return
    counts = [node for node in graph if node.op_type == "CumSum"]
    if not any(inputs[_MASK] in _behind(node) for node in counts):
        raise ModelError(
            f"the decoder has no input {_POSITIONS!r} that it reads: it takes the position of a token from the size "
            f"of its cache, which is wrong for all but the longest row of a batch; export it with {_POSITIONS}"
        )


def _behind(node: ir.Node) -> set[ir.Value]:
    """All values that a node depends on."""
    found: set[ir.Value] = set()
    todo = list(activations_read(node))
    while todo:
        value = todo.pop()
        maker = value.producer()
        if value not in found and maker is not None:
            todo += activations_read(maker)
        found.add(value)
    return found


def _give_back_what_is_new(graph: ir.Graph, caches: list[str]) -> tuple[str, dict[str, str]]:
    """Make the new keys and values outputs, in place of whole caches; the names of the logits' output and of those."""
    outputs = {value.name or "": value for value in graph.outputs}
    logits = outputs.get("logits")
    if logits is None:
        raise ModelError(f"expected a decoder with an output 'logits', came {', '.join(outputs)[:200]}")
    news: dict[str, ir.Value] = {}
    for name in caches:
        present = outputs.get(name.replace("past_key_values", "present"))
        join = present.producer() if present is not None else None
        if present is None or join is None or not _joins(join, name):
            raise ModelError(
                f"expected the output {name.replace('past_key_values', 'present')!r} to be {name!r} with the new rows "
                f"behind it, it is {join.op_type if join is not None else 'not there'}; export it with a growing cache"
            )
        new = join.inputs[1]
        assert new is not None
        news[name] = new
    graph.outputs[:] = [logits, *news.values()]
    return logits.name or "", {name: value.name or "" for name, value in news.items()}


def _joins(node: ir.Node, past: str) -> bool:
    """Whether a node puts rows behind a cache."""
    first = node.inputs[0] if node.inputs else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return node.op_type == "Concat" and len(node.inputs) == 2 and first is not None and first.name == past and axis == 2


def _cache_dims(value: ir.Value, length: str) -> list[int | str]:
    _, heads, _, size = (dim if isinstance(dim, int) else 0 for dim in value.shape or ())
    return ["batch", heads, length, size]


def _slot(prefix: str, name: str) -> str:
    return name.replace("past_key_values", prefix)


def _mask(g: GraphWriter, past: ir.Value, tokens: ir.Value, lengths: ir.Value) -> ir.Value:
    """Of [batch, past + chunk]: which keys count. Within the chunk all do, the decoder lets none look ahead."""
    before = g.op("Less", count_up(g, None, length_of(g, past, 2), [0]), g.op("Unsqueeze", lengths, g.numbers(1)))
    chunk = g.op("Expand", g.constant(True, np.bool_), g.op("Shape", tokens))
    return g.op("Concat", before, chunk, axis=1)


def _only_last(g: GraphWriter, logits: ir.Value, last: ir.Value) -> ir.Value:
    """The logits of one token of each row; where a product of weights makes them, only that row goes into it."""
    places = g.op("Unsqueeze", last, g.numbers(-1))
    product = logits.producer()
    rows = product.inputs[0] if product is not None and product.op_type == "MatMul" else None
    weights = product.inputs[1] if product is not None and rows is not None else None
    if product is None or rows is None or weights is None or weights.const_value is None:
        return g.op("GatherND", logits, places, name="logits", batch_dims=1)
    product.replace_input_with(0, g.op("GatherND", rows, places, batch_dims=1))
    logits.name, logits.shape = "logits", None
    return logits
