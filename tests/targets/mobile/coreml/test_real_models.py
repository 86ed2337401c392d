"""Real models, whole and cut, as packages: the answers of ONNX Runtime within the bars, in little time and space."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.targets.mobile.coreml.graphs import difference

from flagsplit import flagir
from flagsplit.apps import ocr, zoo
from flagsplit.errors import PeerError
from flagsplit.flagir import Segment
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.segments import segment_of
from flagsplit.targets.interface import Array, Artifact, CompileOptions, LoadOptions
from flagsplit.targets.mobile.coreml.target import CoremlTarget
from flagsplit.targets.onnx_engine import open_onnx

ENDS = ((0, 4), (0, 2), (2, 4), (1, 3))
"""Of the segments, in quarters of the model: all of it, its halves and its middle."""
BARS = {"fp32": 1e-4, "fp16": 1e-2}


def _page(name: str) -> Array:
    """Something printed, as the model takes it."""
    page = ocr.first_page()
    if name == "ppocr-rec":
        return ocr.prepare([ocr.cut_line(page, ocr.find_lines(page)[0])], width_px=160)
    if name == "ppocr-det":
        crop = page[:96, :128] / np.float32(127.5) - 1
        return np.repeat(crop[None, None], 3, axis=1)
    return np.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)), np.float32)


@dataclass
class Cut:
    """A model with its segments: all of it, its halves and its middle.

    Attributes:
        model: canonical, its weights mapped.
        segments: of it.
        values: of all that segments take and give, for one sample.
        options: of a build, without choices.
    """

    model: ir.Model
    segments: list[Segment]
    values: Mapping[str, Array]
    options: CompileOptions


def _cut(name: str, folder: Path) -> Cut:
    try:
        model = read_model(zoo.pull(name))
    except PeerError as error:
        pytest.skip(str(error))
    flagir.canonicalize(model)
    flagir.save(model, folder)
    model = flagir.load(folder)
    nodes = [node.name or "" for node in model.graph]
    cuts = [(len(nodes) * low // 4, len(nodes) * high // 4) for low, high in ENDS]
    segments = [segment_of(model, nodes[low:high]) for low, high in cuts]
    (x,) = model.graph.inputs
    inputs = {x.name or "": _page(name)}
    dims = {
        str(dim): size for dim, size in zip(x.shape or (), _page(name).shape, strict=True) if not isinstance(dim, int)
    }
    wanted = dict.fromkeys(each for segment in segments for each in (*segment.inputs, *segment.outputs))
    inside = tuple(each for each in wanted if each not in inputs)
    whole = flagir.extract(model, Segment("whole", tuple(nodes), tuple(inputs), inside))
    (folder / "whole.onnx").write_bytes(flagir.to_bytes(whole))
    weights = folder / flagir.WEIGHTS_NAME
    values = open_onnx(folder / "whole.onnx", weights, "exact", 1).run(inputs)
    return Cut(model, segments, {**inputs, **values}, CompileOptions(dims=dims, samples=[inputs], weights=weights))


def _size(artifact: Artifact) -> int:
    return sum(len(data) for name, data in artifact.files.items() if ".mlpackage" in name and isinstance(data, bytes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "parts"),
    [
        ("ppocr-rec", "fp16", (0, 3)),
        ("ppocr-rec", "fp32", (0, 3)),
        ("ppocr-det", "fp32", (0,)),
        ("ppocr-det", "fp16", (3,)),
        ("light-squeezenet", "fp16", (0, 1, 2)),
    ],
)
def test_segments_of_real_models(
    name: str, precision: str, parts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAGSPLIT_CACHE")
    cut = _cut(name, tmp_path)
    segments = [cut.segments[part] for part in parts]
    options = replace(cut.options, choices={"precision": precision})
    target = CoremlTarget()
    artifact = target.compile(cut.model, segments, options)
    if len(parts) == 3:
        assert _size(artifact) <= 1.1 * _size(target.compile(cut.model, segments[:1], options))
    stored = artifact.store(tmp_path / precision, tmp_path / flagir.WEIGHTS_NAME)
    for segment in segments:
        loaded = target.load(stored, segment.id, LoadOptions(threads=1))
        made = loaded.run({each: cut.values[each] for each in segment.inputs})
        for each in segment.outputs:
            assert difference(made[each], cut.values[each]) <= BARS[precision], (segment.id, each)
