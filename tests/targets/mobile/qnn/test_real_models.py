"""Models of the zoo compiled for a Snapdragon and run on the emulator, which takes minutes: make test-qnn."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.qnn.small import HOST, cosine, expected, numbers, whole

from flagsplit import flagir
from flagsplit.apps.zoo import pull
from flagsplit.errors import PeerError
from flagsplit.flagir import Skeleton
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.flagir.programs.log_mel import write_log_mel
from flagsplit.flagir.programs.writer import REAL, GraphWriter
from flagsplit.targets.conformance.seeded_weights import draw_weights
from flagsplit.targets.interface import Array, CompileOptions
from flagsplit.targets.mobile.qnn.target import QnnTarget

pytestmark = pytest.mark.large

LIGHT = "alexnet densenet121 inception-v1 inception-v2 resnet50 shufflenet squeezenet zfnet512".split()


def _read(name: str) -> ir.Model:
    try:
        model = flagir.read_model(pull(name))
    except PeerError as error:
        pytest.skip(str(error))
    flagir.canonicalize(model)
    return model


def _image(side: int) -> Array:
    """A piece of a photographed page, as the detector takes it."""
    image = pytest.importorskip("PIL.Image").open(pull("page.png")).convert("RGB").crop((0, 0, side, side))
    pixels = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray((pixels.transpose(2, 0, 1)[None] - 0.5) / 0.5)


def _least(model: ir.Model, inputs: dict[str, Array], folder: Path) -> float:
    """The least cosine of an output to what ONNX Runtime gives."""
    shapes = {name: array.shape for name, array in inputs.items()}
    dims = dict(flagir.dims_of_shapes(Skeleton(model), shapes))
    folder.mkdir(exist_ok=True)
    flagir.save(model, folder)
    segment = whole(model)
    artifact = QnnTarget().compile(model, [segment], CompileOptions(dims=dims))
    loaded = QnnTarget().load(artifact.store(folder / "qnn", folder / "weights.bin"), segment.id, HOST)
    found = loaded.run(inputs)
    loaded.close()
    return min(cosine(found[name], array) for name, array in expected(model, folder, inputs).items())


@pytest.mark.parametrize("name", LIGHT)
def test_light_cnns(tmp_path: Path, name: str) -> None:
    model = _read(f"light-{name}")
    (given,) = [value.name or "" for value in model.graph.inputs]
    inputs = {given: numbers(1, 3, 224, 224)}
    draw_weights(model, inputs, np.random.default_rng(0))
    assert _least(model, inputs, tmp_path) >= 0.9999


@pytest.mark.parametrize(("name", "shape"), [("ppocr-rec", (1, 3, 48, 320)), ("ppocr-cls", (1, 3, 48, 192))])
def test_ocr_on_noise(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    assert _least(_read(name), {"x": numbers(*shape)}, tmp_path) >= 0.9999


def test_the_ocr_detector_on_a_page(tmp_path: Path) -> None:
    assert _least(_read("ppocr-det"), {"x": _image(160)}, tmp_path) >= 0.9999


def test_moonshine_encoder(tmp_path: Path) -> None:
    """With its products made floating, as `--float-products` does: the NPU has none that are quantized on the fly."""
    samples = np.frombuffer(pull("beckett.wav").read_bytes()[44:], "<i2")[16_000:48_000]
    speech = (samples.astype(np.float32) / 32768)[None]
    inputs: dict[str, Array] = {"input_values": speech, "attention_mask": np.ones(speech.shape, np.int64)}
    model = _read("moonshine-encoder")
    float_products(model)
    assert _least(model, inputs, tmp_path) >= 0.9999


def test_whispers_spectrogram(tmp_path: Path) -> None:
    """Of speech with silence after it, whose bands the NPU once made loud: 0.02."""
    g = GraphWriter("spectrogram", {})
    spectrogram = write_log_mel(g, g.input("audio", REAL, ["batch", "samples"]), 80, 1000)
    model = g.model([spectrogram])
    flagir.canonicalize(model)
    samples = np.frombuffer(pull("beckett.wav").read_bytes()[44:], "<i2")[16_000:64_000]
    speech = (samples.astype(np.float32) / 32768)[None]
    assert _least(model, {"audio": speech}, tmp_path) >= 0.9999
