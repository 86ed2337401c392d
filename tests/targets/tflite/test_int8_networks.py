"""Networks in int8: all of their work is, and they answer as ONNX Runtime computes the int8 model."""

from pathlib import Path

import numpy as np
import pytest
from tests.flagir.quantization.engine import run
from tests.targets.mobile.litert.parts import parts_of, ran, seed_weights, thirds
from tests.targets.mobile.litert.test_models import SHAPES, model_of
from tests.targets.tflite.int8_parts import floating

from flagsplit.flagir.quantization import QuantizeOptions, cosine, quantize
from flagsplit.targets.tflite.passes import program_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppocr-cls", "light-squeezenet", "light-shufflenet"])
def test_a_network_computes_in_int8(name: str, tmp_path: Path) -> None:
    model, dims = model_of(name)
    if name.startswith("light-"):
        seed_weights(model)
    shape = SHAPES.get(name, (1, 3, 224, 224))
    rng = np.random.default_rng(3)
    (taken,) = model.graph.inputs
    samples = [{taken.name or "": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    int8 = quantize(model, samples[:2], run, QuantizeOptions(min_cosine=-1.0)).model
    (part,) = parts_of(int8, [thirds(int8, dims)["whole"]], dims)
    assert floating(program_of(part)) == []
    wanted = next(iter(run(int8, samples[2:])))
    came = ran(part, tmp_path, samples[2])
    assert all(cosine(came[each], array) >= 0.999 for each, array in wanted.items())
