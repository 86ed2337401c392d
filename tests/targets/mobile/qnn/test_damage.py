"""Damaged context binaries, and one on which the SDK ends its process: it has one of its own."""

from pathlib import Path

import pytest
from tests.targets.mobile.qnn.small import HOST, model_of, numbers, stored, whole

from flagsplit.errors import BundleError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.interface import CompileOptions, StoredArtifact
from flagsplit.targets.mobile.qnn.target import QnnTarget

pytestmark = pytest.mark.slow

TEXT = "g (float[1, 8] x) => (float[1, 8] y) { m = MatMul(x, w) y = Relu(m) }"


def test_damage_is_an_error_and_no_crash(tmp_path: Path) -> None:
    model = model_of(TEXT, {"w": numbers(8, 8)})
    artifact = stored(model, tmp_path)
    segment = whole(model).id
    file = artifact.entry(segment)
    data = file.read_bytes()
    half, start = len(data) // 2, data.index(b"ep_cache_context")
    head = data[: start + 64] + bytes(4096) + data[start + 64 + 4096 :]
    for damaged in (data[:half], head):
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match="cannot be loaded"):
            QnnTarget().load(artifact, segment, HOST)
    table = artifact.folder / "segments.json"
    file.write_bytes(data)
    table.write_text(table.read_text().replace('"float32"', '"float16"'))
    with pytest.raises(BundleError, match="other tensors"):
        QnnTarget().load(artifact, segment, HOST)
    file.unlink()
    with pytest.raises(BundleError, match="get it again"):
        QnnTarget().load(artifact, segment, HOST)


def test_the_end_of_the_sdks_process_is_an_error(tmp_path: Path) -> None:
    """The emulator falls on a binary that several graphs share: this is what comes without the check before it."""
    model = model_of(TEXT, {"w": numbers(8, 8)})
    nodes = [node.name or "" for node in model.graph]
    segments = [segment_of(model, nodes), segment_of(model, nodes[:1])]
    artifact = QnnTarget().compile(model, segments, CompileOptions(choices={"weights": "shared"}))
    told = artifact.store(tmp_path, tmp_path / "weights.bin")
    claimed = StoredArtifact(told.folder, told.entries, {**told.options, "weights": "apart"}, told.weights)
    with pytest.raises(BundleError, match=r"cannot be loaded: the SDK's process ended with -\d+"):
        QnnTarget().load(claimed, segments[0].id, HOST)
