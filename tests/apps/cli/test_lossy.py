"""Plans with codecs and by-passes on the command line: what is shown, and what a check says of an answer."""

from pathlib import Path

import numpy as np
import pytest
from tests.apps import lossy, models
from tests.apps.cli.conftest import Cli
from tests.apps.cli.test_run import tiers
from tests.apps.conftest import Serve

from flagsplit.runtime.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]
_ORDER = ("every-way", "far", "all-phone")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return lossy.build_with(tmp_path, "u8", routes={"far": (0, 2)}, order=_ORDER)


def test_inspect_shows_codec_and_route(cli: Cli, bundle: Bundle) -> None:
    plans = {plan["name"]: plan for plan in cli("inspect", bundle.path, "--json").data["plans"]}
    assert plans["far"]["route"] == ["phone", "cloud"]
    assert plans["every-way"]["route"] == ["phone", "edge", "cloud"]
    shown = {(cut["value"], cut["from"], cut["to"]): cut["codec"] for cut in plans["every-way"]["cuts"]}
    assert shown["v", "edge", "cloud"] == shown["v", "edge", "phone"] == "u8"
    assert shown["q", "edge", "phone"] == "none"
    assert plans["far"]["predicted"]["bottleneck_ms"] > 0
    text = " ".join(cli("inspect", bundle.path).out.split())
    assert "every-way is lossy: it sends x as u8, v as u8, b as u8 and 1 more" in text
    assert "far passes by edge" in text
    assert "all-phone is lossy" not in text


def test_a_check_of_a_lossy_plan(cli: Cli, serve: Serve, bundle: Bundle) -> None:
    """It is far from the model by the codecs, and not at all from the plan's own reference."""
    addresses = tiers(serve(bundle))
    check = cli("run", bundle.path, *addresses, "--plan", "every-way", "--check", "--json").data["check"]
    assert check["max_abs"] > 0
    assert check["plan_reference"]["max_abs"] == 0
    assert check["plan_reference"]["outputs"].keys() == check["outputs"].keys() == set("pqb")
    assert check["codecs"] == [{"value": value, "codec": "u8"} for value in "xvbd"]
    text = " ".join(cli("run", bundle.path, *addresses, "--plan", "every-way", "--check").out.split())
    assert "the plan is lossy: 4 tensors travel as u8" in text
    assert "against the plan's own reference: largest difference 0" in text
    exact = cli("run", bundle.path, *addresses, "--plan", "all-phone", "--check", "--json").data["check"]
    assert exact["max_abs"] == 0
    assert exact.keys() == {"max_abs", "max_rel", "outputs"}


def test_the_reference_that_is_written_is_what_was_run(cli: Cli, serve: Serve, bundle: Bundle, tmp_path: Path) -> None:
    inputs = lossy.inputs_of(1)
    np.savez(tmp_path / "in.npz", x=inputs["x"])
    data = cli("reference", bundle.path, "--plan", "far", "-o", "far.onnx", "--json").data
    assert {cut["codec"] for cut in data["cuts"]} == {"u8", "none"}
    addresses = tiers(serve(bundle))
    cli("run", bundle.path, *addresses, "--plan", "far", "--input", "in.npz", "-o", "out.npz", "--json")
    wanted = models.answers_of(tmp_path / "far.onnx", inputs)
    with np.load(tmp_path / "out.npz") as came:
        assert set(came.files) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(came[name], array)
