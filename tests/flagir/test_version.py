"""The FlagIR version in a model: written, and checked by whoever reads."""

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.flagir.models import canonical, parse

from flagsplit.errors import ModelError
from flagsplit.flagir import check, load, save, violations

MODEL = "g (float[2] x) => (float[2] y) { y = Relu (x) }"


def of_version(version: str) -> ir.Model:
    model = canonical(parse(MODEL))
    model.metadata_props["flagir.version"] = version
    return model


def test_a_canonical_model_says_its_version() -> None:
    assert canonical(parse(MODEL)).metadata_props == {"flagir.version": "1.0"}


@pytest.mark.parametrize("version", ["1.0", "1.7"])
def test_newer_minor_versions_are_read(version: str, tmp_path: Path) -> None:
    model = of_version(version)
    assert violations(model) == ()
    save(model, tmp_path)
    assert load(tmp_path).metadata_props["flagir.version"] == version


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.0", "expected FlagIR version 1, the model has version 2.0; update flagsplit"),
        ("0.9", "make it again"),
        ("1", "MAJOR.MINOR, came '1'"),
        ("new", "MAJOR.MINOR, came 'new'"),
        ("", "MAJOR.MINOR, came ''"),
    ],
)
def test_other_versions_are_refused(version: str, said: str, tmp_path: Path) -> None:
    model = of_version(version)
    with pytest.raises(ModelError, match=said):
        check(model)
    onnx.save(ir.to_proto(model), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=said):
        load(tmp_path)
