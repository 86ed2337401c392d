"""Bundles for accelerators that this host lacks: they are built, say what runs them, and are never run by the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.apps import models

import flagsplit
from flagsplit.errors import ConfigError, PeerError, PolicyError
from flagsplit.runtime.bundle import Bundle
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import LoadOptions

pytestmark = pytest.mark.usefixtures("own_folders")

SHAPE = (2, 3, 16, 16)


def build(folder: Path, device: str, **more: Any) -> Bundle:
    output = folder / "small.flagsplit"
    model = models.save(models.small(), folder / "small.onnx")
    flagsplit.build(
        model,
        "phone,cloud",
        output,
        devices={"cloud": device},
        targets={"phone": ["ort"]},
        shapes={"image": SHAPE},
        **more,
    )
    return flagsplit.open(output)


def answer(bundle: Bundle) -> np.ndarray[Any, Any]:
    """What the phone alone makes of a picture."""
    with flagsplit.connect(bundle, {}) as session:
        return np.asarray(session.run({"image": np.ones(SHAPE, np.float32)})["scores"])


def test_a_provider_of_one_tier_leaves_the_others_alone(tmp_path: Path) -> None:
    bundle = build(tmp_path, "h100", numerics="fast", choices={"ort": {"provider": "h100:cuda"}})
    phone, cloud = (bundle.artifact(tier).options for tier in (0, 1))
    assert "provider" not in phone
    assert cloud["provider"] == "cuda"
    report = flagsplit.verify(bundle)
    found = {each.tier: each for each in report.segments}
    assert found["phone"].verdict == "agrees"
    assert found["cloud"].verdict == "not checked"
    assert "has no CUDAExecutionProvider" in found["cloud"].reason
    assert answer(bundle).size


def test_a_device_of_no_tier(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"expected devices of the tiers \(.*, h100\), came 'h1oo'"):
        build(tmp_path, "h100", numerics="fast", choices={"ort": {"provider": "h1oo:cuda"}})


def test_the_reference_is_the_cpu_s(tmp_path: Path) -> None:
    """Also where the first tier has another provider."""
    bundle = build(tmp_path, "h100", numerics="fast", choices={"ort": {"provider": "cuda"}})
    report = flagsplit.verify(bundle)
    assert {each.verdict for each in report.segments} == {"not checked"}
    with pytest.raises(ConfigError, match="has no CUDAExecutionProvider"):
        answer(bundle)


def test_a_tier_with_an_ascend(tmp_path: Path) -> None:
    if get_target("ascend").describe().runs_here != "no":
        pytest.skip("this host has an Ascend")
    bundle = build(tmp_path, "ascend910b")
    cloud = {made.target: made for made in bundle.facts.tiers[1].artifacts}
    assert list(cloud) == ["ort", "ascend"]
    assert cloud["ascend"].options["soc"] == "Ascend910B3"
    report = flagsplit.verify(bundle)
    found = {each.tier: each for each in report.segments if each.target == "ascend"}
    assert found["cloud"].verdict == "not checked"
    assert "nothing on this host runs artifacts of ascend" in found["cloud"].reason
    with pytest.raises(ConfigError, match="never fall back to the CPU"):
        bundle.load(1, next(iter(cloud["ascend"].entries)), LoadOptions(target="ascend"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "target", "more", "said"),
    [
        ("ascend910b", "ascend", {}, "onnxruntime-cann"),
        ("h100", "ort", {"numerics": "fast", "choices": {"ort": {"provider": "h100:cuda"}}}, "install onnxruntime-gpu"),
    ],
)
def test_a_worker_without_it_ends(tmp_path: Path, device: str, target: str, more: dict[str, Any], said: str) -> None:
    """It does not wait for a session to find out, which would go on with another tier."""
    bundle = build(tmp_path, device, **more)
    told = pytest.raises(PeerError, match=f"worker for tier cloud did not start: .*{said}")
    with told, flagsplit.connect(bundle, run_targets={"cloud": target}):
        pass
