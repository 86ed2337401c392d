"""Chip parts of int8 models, made of texts by quantization on seeded samples, and the programs and answers of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from tests.flagir.quantization.engine import run
from tests.targets.mobile.litert.parts import ran

from flagsplit import flagir
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.flagir.specialize import settle
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.interface import Array
from flagsplit.targets.tflite.passes import program_of
from flagsplit.targets.tflite.program import Program

Sample = Mapping[str, Array]


def part_of(model: ir.Model) -> ChipPart:
    """A canonical model of fixed shapes as one chip part."""
    fixed = model.clone()
    settle(fixed)
    return ChipPart("part", fixed)


def samples_of(model: ir.Model, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Seeded inputs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sample: dict[str, Array] = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            shape = [dim for dim in value.shape if isinstance(dim, int)]
            sample[value.name or ""] = np.asarray(rng.standard_normal(shape), np.float32)
        found.append(sample)
    return found


def canonical(body: str, inputs: str, outputs: str, constants: str = "") -> ir.Model:
    """A canonical model from the pieces of ONNX's text format."""
    known = f"<{constants}>" if constants else ""
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng ({inputs}) => ({outputs}) {known} {{ {body} }}'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    flagir.canonicalize(model)
    return model


def quantized(model: ir.Model) -> ChipPart:
    """The chip part of a model that was quantized, whatever it cost."""
    return part_of(quantize(model, samples_of(model, 6), run, QuantizeOptions(min_cosine=-1)).model)


def int8_part(body: str, inputs: str, outputs: str, constants: str = "") -> ChipPart:
    """The same from the pieces of ONNX's text format."""
    return quantized(canonical(body, inputs, outputs, constants))


def floating(program: Program) -> list[str]:
    """The operators of a program that compute in float32."""
    return [
        operator.code
        for operator in program.operators
        if operator.code not in ("QUANTIZE", "DEQUANTIZE")
        and any(each is not None and each.dtype == "float32" for each in (*operator.inputs, *operator.outputs))
    ]


def codes(part: ChipPart) -> Counter[str]:
    """How often the program has each operator."""
    return Counter(each.code for each in program_of(part).operators)


def off_by(part: ChipPart, folder: Path, sample: Sample | None = None) -> float:
    """The largest difference between an output and ONNX Runtime's, in steps of the output's scale."""
    given = samples_of(part.model, 1, 9)[0] if sample is None else sample
    wanted = next(iter(run(part.model, [given])))
    came = ran(part, folder, given)
    assert list(came) == list(wanted)
    return max(_steps(value, came[value.name or ""], wanted[value.name or ""]) for value in part.model.graph.outputs)


def _steps(output: ir.Value, came: Array, wanted: Array) -> float:
    assert came.dtype == wanted.dtype
    assert came.shape == wanted.shape
    off = float(np.abs(came.astype(np.float64) - wanted.astype(np.float64)).max())
    maker = output.producer()
    if wanted.dtype != np.float32 or maker is None or maker.op_type != "DequantizeLinear":
        return off
    scale = maker.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    return off / float(scale.const_value.numpy().reshape(-1)[0])


def off_by_one_step(
    model: ir.Model, came: Mapping[str, Array], wanted: Mapping[str, Array], most: float = 1.01
) -> bool:
    """Whether answers differ by no more than one step of each output's scale."""
    assert list(came) == list(wanted)
    outputs = model.graph.outputs
    return all(_steps(each, came[each.name or ""], wanted[each.name or ""]) <= most for each in outputs)
