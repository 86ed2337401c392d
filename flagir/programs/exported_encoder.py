"""The other graphs of an exported encoder-decoder: `encode`, and `prefill` out of a decoder's first step.

Exporters write the encoder by itself, and a decoder without a cache, which gives the keys and values of cross-attention
beside its logits: they depend on the hidden states alone.
"""

import re

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.canonical import canonicalize
from flagsplit.flagir.programs.parts import inputs_of, part_of
from flagsplit.flagir.programs.writer import REAL, GraphWriter

_CROSS = re.compile(r"present\.(\d+)\.encoder\.(key|value)")
_SOURCES = {"input_values": "audio", "input_features": "log_mel"}
_HIDDEN = "encoder_hidden_states"


def encode_form(model: ir.Model) -> ir.Model:
    """The graph `encode` of an exported encoder.

    A mask of its input is taken to be of ones: `encode` has one input at a time.

    Args:
        model: from `input_values` or `input_features` to `last_hidden_state`; it stays as it is.

    Raises:
        ModelError: the model does not keep to the convention.
    """
    whole = model.clone()
    canonicalize(whole)
    inputs = {value.name or "": value for value in whole.graph.inputs}
    outputs = {value.name or "": value for value in whole.graph.outputs}
    (source, *more) = [name for name in inputs if name in _SOURCES] or [""]
    if more or source not in inputs or "last_hidden_state" not in outputs:
        raise ModelError(
            f"expected an encoder from input_values or input_features to last_hidden_state, came "
            f"{', '.join(inputs)[:120]} to {', '.join(outputs)[:120]}"
        )
    if others := inputs.keys() - {source, "attention_mask"}:
        raise ModelError(f"`encode` does not know what to give to the input {min(others)!r} of the encoder")
    g = GraphWriter("encode", {})
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in inputs[source].shape or ()]
    given = {source: g.input(_SOURCES[source], REAL, shape)}
    mask = inputs.get("attention_mask")
    if mask is not None:
        one = g.op("Cast", g.numbers(1), to=mask.dtype)
        sizes = g.op("Shape", given[source])
        if len(shape) == 3:
            sizes = g.op("Gather", sizes, g.numbers(0, 2))
        given["attention_mask"] = g.op("Expand", one, sizes)
    hidden = g.inline(whole, "encoder", given)["last_hidden_state"]
    hidden.name = "hidden"
    return g.model([hidden])


def prefill_form(model: ir.Model) -> ir.Model:
    """The graph `prefill` of an exported decoder.

    Args:
        model: of the first step: from `encoder_hidden_states` and tokens to logits and `present`; it stays as it is.

    Raises:
        ModelError: the model does not keep to the convention, or its keys depend on more than the hidden states.
    """
    whole = model.clone()
    canonicalize(whole)
    found = {value.name or "": value for value in whole.graph.outputs if _CROSS.fullmatch(value.name or "")}
    names = [f"present.{layer}.encoder.{part}" for layer in range(len(found) // 2) for part in ("key", "value")]
    if not found or sorted(names) != sorted(found):
        raise ModelError(
            f"expected a decoder with outputs present.0.encoder.key, present.0.encoder.value and so on, "
            f"came {', '.join(value.name or '' for value in whole.graph.outputs)[:200]}; export its first step"
        )
    outputs = [found[name] for name in names]
    _take_batch_of_hidden(whole.graph)
    needed = {value.name or "" for value in inputs_of(outputs)}
    if needed != {_HIDDEN}:
        raise ModelError(
            f"expected the keys of cross-attention to depend on {_HIDDEN} alone, they need "
            f"{', '.join(sorted(needed)) or 'nothing'}; export the first step without a cache"
        )
    part = part_of(whole, outputs, "prefill")
    for value in part.graph.inputs:
        value.name = "hidden"
    for value, name in zip(part.graph.outputs, names, strict=True):
        value.name = name.replace("present.", "cross.").replace(".encoder.", ".")
    canonicalize(part)
    return part


def _take_batch_of_hidden(graph: ir.Graph) -> None:
    """Let nodes that ask only for the size of the batch ask the hidden states, not the tokens."""
    hidden = next((value for value in graph.inputs if value.name == _HIDDEN), None)
    for value in graph.inputs:
        for use in list(value.uses()):
            if hidden is not None and use.node.op_type == "Shape" and _axes(use.node) == (0, 1):
                use.node.replace_input_with(use.idx, hidden)


def _axes(shape: ir.Node) -> tuple[int, int | None]:
    """From which axis to which a `Shape` goes."""
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    return start.as_int() if start is not None else 0, end.as_int() if end is not None else None
