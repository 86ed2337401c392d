"""Int8 models in bundles: parts of a phone and of Coral agree with the reference, and what Coral lacks moves."""

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from tests.flagir.quantization.engine import run
from tests.flagir.quantization.test_quantize import _pictures, _small
from tests.targets.tflite.int8_parts import canonical, samples_of

import flagsplit
from flagsplit import flagir
from flagsplit.apps.cli import inspect
from flagsplit.errors import PolicyError
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.runtime.bundle import open_bundle
from flagsplit.splitter.sla import parse_sla

pytestmark = pytest.mark.usefixtures("own_folders")


def _stored(model: ir.Model, folder: Path) -> Path:
    file = folder / "int8.onnx"
    file.write_bytes(flagir.to_bytes(model))
    return file


def _built(model: Path, **wanted: object) -> Path:
    output = model.with_suffix(".flagsplit")
    devices = {"phone": "pixel8", "edge": "coral-edgetpu"}
    flagsplit.build(model, "phone,edge", output, devices=devices, sla=parse_sla(dict(wanted)))
    return output


def _inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the target tells of its segments is shown to people and to programs."""
    capsys.readouterr()
    inspect.command(bundle, as_json=True)
    _, edge = json.loads(capsys.readouterr().out)["tiers"]
    report = edge["reports"]["edgetpu"]
    assert report["basis"] == "modelled"
    inspect.command(bundle)
    shown = " ".join(capsys.readouterr().out.split())
    for segment, part in report["segments"].items():
        assert f"edge, edgetpu, {segment}: {part['summary']} (modelled)" in shown


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["none", "fp16", "u8_per_channel"])
def test_both_parts_of_a_split_network_compute_in_int8(
    codec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _stored(quantize(_small(), _pictures(8), run).model, tmp_path)
    pins = {"node_3": "phone", "node_10": "edge"}
    bundle = _built(model, pins=pins, accuracy={"every_cut": {"codecs": [codec]}})
    assert all(cut.codec in (codec, "none") for plan in open_bundle(bundle).plans.pool.plans for cut in plan.cuts)
    found = flagsplit.verify(bundle, bisect=False)
    assert not found.departs
    assert {check.target for check in found.segments} == {"ort", "litert", "edgetpu"}
    _inspect(bundle, capsys)


@pytest.mark.slow
def test_what_coral_lacks_runs_on_the_phone(tmp_path: Path) -> None:
    model = canonical(
        "a = Add(x, x) b = Tanh(a) e = Erf(b) c = Add(e, e) y = Mul(c, c)", "float[1,8] x", "float[1,8] y"
    )
    int8 = quantize(model, samples_of(model, 6), run, QuantizeOptions(min_cosine=-1.0)).model
    (erf,) = (node.name for node in int8.graph if node.op_type == "Erf")
    stored = _stored(int8, tmp_path)
    found = flagsplit.verify(_built(stored), bisect=False)
    assert not found.departs
    with pytest.raises(PolicyError, match="has no form in int8"):
        _built(stored, pins={erf or "": "edge"})
