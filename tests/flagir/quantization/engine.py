"""Running models for the tests of quantization, each QuantizeLinear and DequantizeLinear by itself."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from flagsplit import flagir

Array = NDArray[Any]


def run(model: ir.Model, samples: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(flagir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    for sample in samples:
        yield {name: np.asarray(made) for name, made in zip(names, session.run(names, dict(sample)), strict=True)}
