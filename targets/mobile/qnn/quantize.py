"""Static quantization: a model with QuantizeLinear and DequantizeLinear around every operator, for the NPU's integers.

Weights have 8 bits, activations 16 or 8, with ranges from real inputs; ONNX Runtime's quantizer does it, by the rules
that it has for this NPU. What it makes is compared with the floating-point model on the same inputs, as ONNX Runtime
runs it and, where the NPU or its emulator is here, as that runs it: integers of the NPU round in other places.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ConfigError, ModelError
from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.qnn.emulator import open_compiled
from flagsplit.targets.mobile.qnn.socs import Soc
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.segment_table import ChipCall

LEAST_COSINE = 0.99
"""Between an output of the quantized model and of the floating-point one, over the worst sample."""

_PREPROCESSED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells the quantizer that the model needs no folding, of which it else warns."""


def quantize(model: ir.Model, segment: str, samples: Sequence[Mapping[str, Array]], bits: int) -> ir.Model:
    """Quantize a prepared model.

    Args:
        model: with its weights; it stays as it is.
        segment: for messages.
        samples: values of its inputs.
        bits: of the activations, 8 or 16.

    Raises:
        ConfigError: there are no samples.
        ModelError: the quantized model departs from the floating-point one by more than `LEAST_COSINE`, or the
            quantizer cannot handle the model.
    """
    if not samples:
        raise ConfigError("precision=qdq is calibrated on real inputs of the model, came none; give some as samples")
    with TemporaryDirectory() as name:
        exact, quantized = Path(name) / "exact.onnx", Path(name) / "quantized.onnx"
        model = model.clone()
        model.metadata_props[_PREPROCESSED[0]] = _PREPROCESSED[1]
        exact.write_bytes(flagir.to_bytes(model))
        try:
            _quantize(exact, quantized, samples, bits)
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise ModelError(f"segment {segment} cannot be quantized: {why}; choose precision=fp16") from error
        first, second = (open_onnx(file, None, "fast", 0) for file in (exact, quantized))
        for sample in samples:
            _check_close(segment, first.run(sample), second.run(sample), "in ONNX Runtime")
        made = ir.load(quantized)
        made.metadata_props.clear()
        return made


def _quantize(source: Path, made: Path, samples: Sequence[Mapping[str, Array]], bits: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize as run_quantizer
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    class _Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            return next(self._left, None)

    kind = QuantType.QUInt16 if bits == 16 else QuantType.QUInt8
    config = get_qnn_qdq_config(source, _Samples(), activation_type=kind, weight_type=QuantType.QUInt8)
    run_quantizer(source, made, config)


def check_compiled(
    model: ir.Model, content: bytes, call: ChipCall, soc: Soc, sample: Mapping[str, Array], segment: str
) -> None:
    """Compare a compiled quantized model, run on the NPU or its emulator, with the floating-point one on one sample.

    Raises:
        ModelError: as of `quantize`.
    """
    with TemporaryDirectory() as name:
        exact, compiled = Path(name) / "exact.onnx", Path(name) / call.file
        exact.write_bytes(flagir.to_bytes(model))
        compiled.write_bytes(content)
        expected = open_onnx(exact, None, "fast", 0).run(sample)
        npu = open_compiled(compiled, call, soc)
        try:
            _check_close(segment, expected, npu.run(sample), "on the NPU")
        finally:
            npu.close()


def _check_close(segment: str, expected: Mapping[str, Array], found: Mapping[str, Array], where: str) -> None:
    for name, array in expected.items():
        cosine = _cosine(array, found[name])
        if not cosine >= LEAST_COSINE:
            raise ModelError(
                f"segment {segment}: quantized, {name!r} has {where} cosine {cosine:.4f} to the floating-point model; "
                f"at least {LEAST_COSINE} is wanted; choose activations=16, precision=fp16 or more samples"
            )


def _cosine(first: Array, second: Array) -> float:
    a, b = (array.astype(np.float64).ravel() for array in (first, second))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))
