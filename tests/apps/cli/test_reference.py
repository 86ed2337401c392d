"""`flagsplit reference`: from a bundle or a model with plans to one ONNX model that answers as the model does."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.apps import models
from tests.apps.cli.conftest import Cli

from flagsplit import flagir
from flagsplit.runtime.bundle import GRAPH_NAME, open_bundle


def test_a_plan_of_a_bundle(cli: Cli, split_bundle: Path, small_model: Path) -> None:
    bundle = open_bundle(split_bundle)
    inputs = {"image": np.random.default_rng(0).standard_normal((2, 3, 32, 40)).astype(np.float32)}
    wanted = models.answers_of(small_model, inputs)
    for plan in bundle.plans.pool.plans[:2]:
        data = cli("reference", split_bundle, "--plan", plan.name, "-o", "r.onnx", "--json").data
        assert data["reference"] == "r.onnx"
        assert data["plan"] == plan.name
        assert data["tiers"] == [plan.tiers[index] for index in plan.used_tiers]
        assert [cut["codec"] for cut in data["cuts"]] == ["none"] * len(plan.cuts)
        assert data["functions"] == []
        path = Path("r.onnx")
        onnx.checker.check_model(path, full_check=True)
        assert [made.name for made in onnx.load(path).configuration] == [plan.name]
        found = models.answers_of(path, inputs)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_model_with_plans(cli: Cli, split_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(split_bundle)
    name = bundle.plans.pool.plans[0].name
    for source, output in ((bundle.folder / GRAPH_NAME, "a.onnx"), (split_bundle, "b.onnx")):
        done = cli("reference", source, "--plan", name, "-o", output)
        assert done.code == 0
        assert f"plan {name}: " in done.out
        assert output in done.out
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


@pytest.mark.parametrize("source", ["bundle", "model", "none", "text"])
def test_misuse(cli: Cli, source: str, split_bundle: Path, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    path = {"bundle": split_bundle, "model": small_model}.get(source, tmp_path / source)
    said = {
        "bundle": "plan 'best' is not in the pool",
        "model": "expected one of the plans (none), came 'best'",
        "none": "no such model file",
        "text": "it looks like a text file",
    }[source]
    done = cli("reference", path, "--plan", "best", "-o", "r.onnx")
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not Path("r.onnx").exists()


def test_the_source_stays(cli: Cli, split_bundle: Path, tmp_path: Path) -> None:
    model = flagir.read_model(open_bundle(split_bundle).folder / GRAPH_NAME)
    flagir_file = tmp_path / "m.onnx.data"
    ir.external_data.load_to_model(model)
    flagir_file.write_bytes(flagir.to_bytes(model))
    before = flagir_file.read_bytes()
    plan = next(iter(flagir.plans_on(model)))
    for output in ("m.onnx.data", "m.onnx"):
        assert "is the source itself" in cli("reference", flagir_file, "--plan", plan, "-o", output).error
    assert flagir_file.read_bytes() == before
