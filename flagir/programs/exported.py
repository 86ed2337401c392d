"""Decoders as exporters write them, brought into slot form.

The convention is that of Hugging Face's exporters: `input_ids`, `attention_mask` over cache and chunk, `position_ids`,
`past_key_values.I.key` and `.value`; `logits` of every token and `present.I.key` and `.value`, the whole cache again.
With an encoder the caches are `past_key_values.I.decoder.key` and `.encoder.key`, the mask of the latter is
`encoder_attention_mask`, and names may begin with `decoder_`. Slot form gives back only what is new, and only the
logits asked for. Masks are made of the lengths of the caches, so that rows of other lengths fit into one batch;
therefore positions must not come from the size of the cache. `exported_encoder.py` has the other graphs.
"""

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.canonical import canonicalize
from flagsplit.flagir.programs.layers import count_up, length_of
from flagsplit.flagir.programs.parts import inputs_of
from flagsplit.flagir.programs.writer import REAL, WHOLE, GraphWriter, declared

_CACHE = re.compile(r"past_key_values\.(\d+)\.(?:(decoder|encoder)\.)?(key|value)")
_TOKENS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_FRAMES_MASK = "encoder_attention_mask"


def slot_form(model: ir.Model) -> ir.Model:
    """The graph `step` of an exported decoder.

    Args:
        model: as `read_model` gives it; it stays as it is, and `step` shares its weights.

    Raises:
        ModelError: the model does not keep to the convention, or takes positions from the size of its cache.
    """
    whole = model.clone()
    canonicalize(whole)
    inputs = {
        (value.name or "").removeprefix("decoder_"): value
        for value in whole.graph.inputs
        if value.uses() or _CACHE.fullmatch(value.name or "")
    }
    pasts, crosses = _caches(inputs)
    _check_inputs(inputs, [*pasts, *crosses])
    _check_positions(inputs, whole.graph)
    logits, news = _give_back_what_is_new(whole.graph, list(pasts))
    g = GraphWriter("step", {})
    tokens, positions = (g.input(name, WHOLE, ["batch", "chunk"]) for name in ("tokens", "positions"))
    lengths, last = (g.input(name, WHOLE, ["batch"]) for name in ("past_lengths", "last"))
    given = {name: g.input(slot, REAL, _cache_dims(inputs[name], "past")) for name, slot in pasts.items()}
    mask = _mask(g, given[next(iter(pasts))], tokens, lengths)
    given |= {name: g.input(slot, REAL, _cross_dims(inputs[name])) for name, slot in crosses.items()}
    given |= {_TOKENS: tokens, _POSITIONS: positions, _MASK: g.op("Cast", mask, to=inputs[_MASK].dtype)}
    if crosses:
        frames, ends = length_of(g, given[next(iter(crosses))], 2), g.input("cross_lengths", WHOLE, ["batch"])
        if _FRAMES_MASK in inputs:
            given[_FRAMES_MASK] = g.op("Cast", _before(g, frames, ends), to=inputs[_FRAMES_MASK].dtype)
    made = g.inline(whole, "decoder", {value.name or "": given[name] for name, value in inputs.items()})
    outputs = [declared(made[news[name]], _cache_dims(inputs[name], "chunk")) for name in pasts]
    for slot, value in zip(pasts.values(), outputs, strict=True):
        value.name = slot.replace("past.", "new.")
    return g.model([_only_last(g, made[logits], last), *outputs])


def _caches(inputs: dict[str, ir.Value]) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the caches and what they are called in slot form, layer by layer, keys first; of both kinds."""
    matches = {name: match for name in inputs if (match := _CACHE.fullmatch(name))}
    cross = sorted(name for name, match in matches.items() if match[2] == "encoder")
    past = sorted(matches.keys() - set(cross))
    found = []
    for names, prefix in ((past, "past"), (cross, "cross")):
        slots = {f"{prefix}.{int(matches[name][1])}.{matches[name][3]}": name for name in names}
        wanted = [f"{prefix}.{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
        if not past or (names and sorted(slots) != sorted(wanted)):
            raise ModelError(
                "expected a decoder with inputs past_key_values.0.key, past_key_values.0.value and so on, "
                f"came {', '.join(inputs)[:200]}; export it with its cache"
            )
        found.append({slots[slot]: slot for slot in wanted if names})
    return found[0], found[1]


def _check_inputs(inputs: dict[str, ir.Value], caches: Sequence[str]) -> None:
    for name in (_TOKENS, _MASK):
        if name not in inputs:
            raise ModelError(f"expected a decoder with an input {name!r}, it has none; export it with that input")
    masks = {_FRAMES_MASK} if any(".encoder." in name for name in caches) else set()
    if others := inputs.keys() - {_TOKENS, _MASK, _POSITIONS, *masks, *caches}:
        hint = "export it without merging" if "use_cache_branch" in others else "export the step that has a cache"
        raise ModelError(f"a step does not know what to give to the input {min(others)!r}; {hint}")
    for name in caches:
        value = inputs[name]
        sizes = [isinstance(dim, int) for dim in value.shape or ()]
        whole = ".encoder." in name  # its length may be fixed
        if value.dtype != REAL or sizes not in ([False, True, False, True], [False, True, whole, True]):
            raise ModelError(
                f"expected {name} to be float32 of [batch, heads, length, size] with heads and size fixed, "
                f"came {value.dtype} {value.shape}; export it in float32 with batch and length open"
            )
        if whole and _FRAMES_MASK not in inputs and sizes == [False, True, False, True]:
            raise ModelError(
                f"the decoder reads no {_FRAMES_MASK!r}: it could not tell the end of a shorter input in a batch; "
                f"export it with that input, or with a fixed number of frames"
            )


def _check_positions(inputs: dict[str, ir.Value], graph: ir.Graph) -> None:
    """Positions must be an input, or counted from the mask: the size of the cache is that of the longest row."""
    if _POSITIONS in inputs:
        return
    counts = [node.outputs[0] for node in graph if node.op_type == "CumSum"]
    if inputs[_MASK] not in inputs_of(counts):
        raise ModelError(
            f"the decoder has no input {_POSITIONS!r} that it reads: it takes the position of a token from the size "
            f"of its cache, which is wrong for all but the longest row of a batch; export it with {_POSITIONS}"
        )


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


def _cache_dims(value: ir.Value, length: int | str) -> list[int | str]:
    _, heads, _, size = (dim if isinstance(dim, int) else 0 for dim in value.shape or ())
    return ["batch", heads, length, size]


def _cross_dims(value: ir.Value) -> list[int | str]:
    frames = value.shape[2] if value.shape is not None else None
    return _cache_dims(value, frames if isinstance(frames, int) else "frames")


def _before(g: GraphWriter, length: ir.Value, lengths: ir.Value) -> ir.Value:
    """Of [batch, length]: which places are before the end of their row."""
    return g.op("Less", count_up(g, None, length, [0]), g.op("Unsqueeze", lengths, g.numbers(1)))


def _mask(g: GraphWriter, past: ir.Value, tokens: ir.Value, lengths: ir.Value) -> ir.Value:
    """Of [batch, past + chunk]: which keys count. Within the chunk all do, the decoder lets none look ahead."""
    chunk = g.op("Expand", g.constant(True, np.bool_), g.op("Shape", tokens))
    return g.op("Concat", _before(g, length_of(g, past, 2), lengths), chunk, axis=1)


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
