"""Moonshine out of the two graphs that it is published as: their weights, and graphs in a program's form around them.

The published graphs quantize activations on the fly, one range for a whole batch, so that rows depend on their batch
mates; and the decoder holds its layers twice, in the branches of an `If`. Weights are found by the names of the
products that read them, made real, and given to the builders.
"""

import re
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.canonical import canonicalize
from flagsplit.flagir.passes.float_products import quantized_product
from flagsplit.flagir.programs.decoder import build_prefill, build_step
from flagsplit.flagir.programs.encoder import build_encode
from flagsplit.flagir.programs.program import GraphName, Program, ProgramFacts
from flagsplit.flagir.programs.spec import Conv, DecoderSpec, EncoderSpec
from flagsplit.flagir.programs.writer import Array

HEADS = 8
FIRST, LAST = 1, 2
MAX_POSITIONS = 194
"""`max_position_embeddings` of its configuration."""
SAMPLES_PER_FRAME = 64 * 3 * 2
TOKENS_PER_S = 6.5
"""By which its authors stop a decoder that does not come to an end."""

_LAYER = re.compile(r"/layers\.(\d+)/(self_attn|encoder_attn|mlp)/(q_proj|k_proj|v_proj|o_proj|fc1|fc2)/")
_NAMED = re.compile(r"(?:model\.decoder\.)?(layers\.\d+\.|)(\w+)\.(\w+)(?:\.(\w+))?")
_PARTS = {"self_attn": "self", "encoder_attn": "cross", "mlp": "mlp"}
_CONVS = (Conv(64, 0, "tanh", norm=True), Conv(3, 0, "gelu"), Conv(2, 0, "gelu"))
_ENCODER_NORMS = {"input_layernorm": "self.norm", "post_attention_layernorm": "mlp.norm", "layer_norm": "norm"}
_DECODER_NORMS = {
    "input_layernorm": "self.norm",
    "post_attention_layernorm": "cross.norm",
    "final_layernorm": "mlp.norm",
    "norm": "norm",
}


def read_moonshine(encoder: ir.Model, decoder: ir.Model, tokenizer: bytes) -> Program:
    """The program of a published Moonshine.

    Args:
        encoder: as `read_model` gives it; it is made canonical.
        decoder: the merged one, likewise.
        tokenizer: its `tokenizer.bin`.

    Raises:
        ModelError: the graphs are not those of a Moonshine.
    """
    canonicalize(encoder)
    canonicalize(decoder)
    try:
        encode_weights, weights = _encoder_weights(encoder), _decoder_weights(decoder)
        return Program(*_built(encode_weights, weights), tokenizer)
    except KeyError as error:
        raise _stranger(f"the weight {error}") from error


def _built(
    encode_weights: dict[str, Array], weights: dict[str, Array]
) -> tuple[ProgramFacts, dict[GraphName, ir.Model]]:
    vocabulary, width = weights["tokens.weight"].shape
    head_size = weights["layers.0.self.q.weight"].shape[0] // HEADS
    rotary_size = 2 * len(weights["rotary.frequencies"])
    decoder_spec = DecoderSpec(
        layers=_layers(weights),
        heads=HEADS,
        kv_heads=HEADS,
        head_size=head_size,
        width=width,
        norm="layer",
        epsilon=1e-5,
        mlp="gated-silu",
        rotary_size=rotary_size,
        rotary_interleaved=True,
        vocabulary=vocabulary,
        cross=True,
    )
    encoder_spec = EncoderSpec(
        layers=_layers(encode_weights),
        heads=HEADS,
        kv_heads=HEADS,
        head_size=head_size,
        width=len(encode_weights["norm.weight"]),
        norm="layer",
        epsilon=1e-5,
        mlp="gelu",
        rotary_size=rotary_size,
        rotary_interleaved=True,
        input="audio",
        convs=_CONVS,
    )
    graphs: dict[GraphName, ir.Model] = {
        "encode": build_encode(encoder_spec, encode_weights),
        "prefill": build_prefill(decoder_spec, weights),
        "step": build_step(decoder_spec, weights),
    }
    return _facts(decoder_spec), graphs


def _layers(weights: dict[str, Array]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("layers.")), default=-1)


def _facts(spec: DecoderSpec) -> ProgramFacts:
    return ProgramFacts(
        name="moonshine-tiny-en",
        kind="encoder-decoder",
        source="Moonshine tiny-en by Useful Sensors, from moonshine-voice",
        license="MIT",
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        width=spec.width,
        vocabulary=spec.vocabulary,
        max_positions=MAX_POSITIONS,
        input="audio",
        tokenizer="moonshine",
        prompt=(FIRST,),
        stop_tokens=(LAST,),
        tokens_per_s=TOKENS_PER_S,
        frames_per_s=16_000 / SAMPLES_PER_FRAME,
        max_input_s=int(MAX_POSITIONS / TOKENS_PER_S),
    )


def _decoder_weights(model: ir.Model) -> dict[str, Array]:
    found = dict(_linear_weights(model))
    found |= _named_weights(model, _DECODER_NORMS)
    for layer in range(_layers(found)):
        name = f"layers.{layer}.mlp"
        for part in ("weight", "bias"):
            up_and_gate = found.pop(f"{name}.fc1.{part}")
            found[f"{name}.up.{part}"], found[f"{name}.gate.{part}"] = np.split(up_and_gate, 2)
            found[f"{name}.down.{part}"] = found.pop(f"{name}.fc2.{part}")
    found["tokens.weight"] = _table(model)
    found["rotary.frequencies"] = _frequencies(model)
    logits = found.pop("logits.weight")
    if not np.array_equal(logits, found["tokens.weight"]):
        found["logits.weight"] = logits
    return found


def _encoder_weights(model: ir.Model) -> dict[str, Array]:
    found = dict(_linear_weights(model))
    found |= _named_weights(model, _ENCODER_NORMS)
    for name in [name for name in found if ".mlp.fc" in name]:
        found[name.replace("fc1", "up").replace("fc2", "down")] = found.pop(name)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    for index, node in enumerate(convs):
        for part, value in zip(("weight", "bias"), node.inputs[1:], strict=False):
            found[f"convs.{index}.{part}"] = _array(value)
    for operator, part in (("Mul", "weight"), ("Add", "bias")):
        for node in model.graph:
            if node.op_type == operator and "/groupnorm/" in (node.outputs[0].name or ""):
                found[f"convs.0.norm.{part}"] = _array(node.inputs[1]).reshape(-1)
    found["rotary.frequencies"] = _frequencies(model)
    return found


def _linear_weights(model: ir.Model) -> Iterator[tuple[str, Array]]:
    """Of all products, by the names of `spec.py` but for `fc1` and `fc2`, which a gate divides."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        product = quantized_product(node)
        if product is None:
            continue
        name = product.end.outputs[0].name or ""
        of_layer = _LAYER.search(name)
        if of_layer is None:
            yield "logits.weight", product.real_weights().T
            continue
        layer, part, linear = of_layer.groups()
        yield f"layers.{layer}.{_PARTS[part]}.{linear.removesuffix('_proj')}.weight", product.real_weights().T


def _named_weights(model: ir.Model, norms: dict[str, str]) -> dict[str, Array]:
    """Norms and biases, whose names the files keep."""
    found: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        match = _NAMED.fullmatch(name.removesuffix("_merged_0"))
        if match is None or value.const_value is None:
            continue
        layer, first, second, third = match.groups()
        if first in norms and second == "weight":
            found[f"{layer}{norms[first]}.weight"] = _array(value)
        elif first == "mlp" and third == "bias":
            found[f"{layer}mlp.{second}.bias"] = _array(value)
    return found


def _table(model: ir.Model) -> Array:
    """The embedding, which is gathered as integers and made real after."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        gather = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        if gather is not None and gather.op_type == "Gather":
            numbers, scale, zero = (_array(value) for value in (gather.inputs[0], *node.inputs[1:3]))
            return (numbers - zero) * scale
    raise _stranger("the table of its tokens")


def _frequencies(model: ir.Model) -> Array:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Expand" and "/rotary_emb/" in (node.outputs[0].name or ""):
            return _array(node.inputs[0]).reshape(-1)
    raise _stranger("its rotary frequencies")


def _array(value: ir.Value | None) -> Array:
    if value is None or value.const_value is None:
        raise _stranger("a weight")
    return np.asarray(value.const_value.numpy(), np.float32)


def _stranger(what: str) -> ModelError:
    return ModelError(f"expected the graphs of a published Moonshine, {what} cannot be found in it; use its .ort files")
