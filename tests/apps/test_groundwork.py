"""What planning takes from a target's description: shapes that it cannot have keep blocks away, with the reason."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.apps import models

import flagsplit
from flagsplit.errors import PolicyError
from flagsplit.targets.catalogue import TARGETS
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import TargetDescription


class _FixedShapes(OrtTarget):
    def describe(self) -> TargetDescription:
        return replace(super().describe(), static_shapes=True)


class _LowRanks(OrtTarget):
    def describe(self) -> TargetDescription:
        return replace(super().describe(), max_rank=1)


def test_open_dimensions_and_ranks_are_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.save(models.small(), tmp_path / "small.onnx")
    flagsplit.plan(model, "phone,cloud")
    monkeypatch.setitem(TARGETS, "ort", _FixedShapes)
    flagsplit.build(model, "phone,cloud", tmp_path / "nominal.flagsplit")
    with pytest.raises(PolicyError, match=r"ort takes fixed shapes only, and \w+ of '.*' is open") as caught:
        flagsplit.build(model, "phone,cloud", tmp_path / "open.flagsplit", ranges={"N": (1, 4)})
    assert "has no tier left" in str(caught.value)
    monkeypatch.setitem(TARGETS, "ort", _LowRanks)
    with pytest.raises(PolicyError, match="ort takes ranks up to 1, and "):
        flagsplit.plan(model, "phone,cloud")
