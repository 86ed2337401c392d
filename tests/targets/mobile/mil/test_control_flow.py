"""Branches, loops, lists, states, classes, boxes and random numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.targets.mobile.mil.oracle import close, onnx_op
from tests.targets.mobile.mil.writing import load, run, save

from flagsplit.errors import BundleError
from flagsplit.targets.mobile.mil import executor, load_package
from flagsplit.targets.mobile.mil.proto import pb


@pytest.mark.parametrize("value", [2.0, -2.0])
def test_branches(tmp_path: Path, value: float) -> None:
    x = np.array([value, 1.0], np.float32)

    def build(mb: Any, x: Any) -> Any:
        twice = mb.mul(x=x, y=2.0)
        first = mb.squeeze(x=mb.slice_by_index(x=x, begin=[0], end=[1]))
        return mb.cond(
            pred=mb.greater(x=first, y=0.0),
            _true_fn=lambda: mb.add(x=twice, y=1.0),
            _false_fn=lambda: mb.sub(x=twice, y=1.0),
        )

    (came,) = run(tmp_path, build, {"x": x})
    close(came, 2 * x + np.float32(np.sign(value)))


def _doubled_until(limit: float) -> Any:
    def build(mb: Any, x: Any) -> Any:
        def more(x: Any, steps: Any) -> Any:
            return mb.less(x=mb.reduce_max(x=x, axes=[0]), y=limit)

        def body(x: Any, steps: Any) -> Any:
            return mb.mul(x=x, y=2.0), mb.add(x=steps, y=1)

        return mb.while_loop(_cond=more, _body=body, loop_vars=(x, np.int32(0)))

    return build


def test_loops(tmp_path: Path) -> None:
    doubled, steps = run(tmp_path, _doubled_until(20.0), {"x": np.array([1, 3], np.float32)})
    close(doubled, np.array([8, 24], np.float32))
    assert int(steps.reshape(-1)[0]) == 3


def test_a_loop_without_an_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "MAX_STEPS", 1000)
    with pytest.raises(BundleError, match="at most 1000 are allowed"):
        run(tmp_path, _doubled_until(20.0), {"x": np.zeros(2, np.float32)})


def test_a_loop_that_changes_the_type_of_a_value_is_refused(tmp_path: Path) -> None:
    package = save(tmp_path, _doubled_until(20.0), {"x": np.zeros(2, np.float32)})
    spec = pb().Model_pb2.Model()
    model = package / "Data/com.apple.CoreML/model.mlmodel"
    spec.ParseFromString(model.read_bytes())
    body = spec.mlProgram.functions["main"].block_specializations["CoreML5"]
    (loop,) = (item for item in body.operations if item.type == "while_loop")
    loop.blocks[1].inputs[0].type.tensorType.dataType = 10
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(BundleError, match=r"block 1 of .* takes \['float16', 'int32'\]"):
        load_package(package).function()


def test_lists(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)

    def build(mb: Any, x: Any) -> Any:
        values = mb.make_list(init_length=3, elem_shape=(2,), dtype="fp32")
        values = mb.list_scatter(ls=values, indices=[2, 0, 1], value=x)
        values = mb.list_write(ls=values, index=1, value=mb.mul(x=mb.list_read(ls=values, index=0), y=10.0))
        return mb.list_gather(ls=values, indices=[0, 1, 2]), mb.list_length(ls=values)

    gathered, length = run(tmp_path, build, {"x": x})
    close(gathered, np.array([[2, 3], [20, 30], [0, 1]], np.float32))
    assert int(length.reshape(-1)[0]) == 3


def test_states_live_on_between_runs(tmp_path: Path) -> None:
    def build(mb: Any, x: Any, total: Any) -> Any:
        before = mb.read_state(input=total)
        after = mb.add(x=before, y=x)
        return mb.coreml_update_state(state=total, value=after)

    import coremltools as ct
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    specs = {
        "x": Builder.TensorSpec((3,), dtype=types.fp16),
        "total": Builder.StateTensorSpec((3,), dtype=types.fp16),
    }
    function = load(tmp_path, build, specs, ios=18, outputs=[ct.TensorType(dtype=np.float16)])
    assert [(spec.name, spec.dtype, spec.shape) for spec in function.states] == [("total", "float16", (3,))]
    x = np.array([1, 2, 3], np.float16)
    state = function.new_state()
    first, second = (next(iter(function.run({"x": x}, state).values())) for _ in range(2))
    close(first, x)
    close(second, 2 * x)
    close(state["total"], 2 * x)
    close(next(iter(function.run({"x": x}).values())), x)


def test_classes(tmp_path: Path) -> None:
    x = np.array([[0.2, 0.5, 0.3]], np.float32)
    import coremltools as ct

    config = ct.ClassifierConfig(["a", "b", "c"])
    function = load(tmp_path, lambda mb, x: mb.mul(x=x, y=2.0), {"x": x}, passes=True, classifier_config=config)
    assert [spec.dtype for spec in function.outputs] == ["string", "float64"]
    label, chances = function.run({"x": x}).values()
    assert str(label) == "b"
    close(chances, (2 * x[0]).astype(np.float64))


@pytest.mark.parametrize("ios", [15, 17])
def test_boxes_are_suppressed(tmp_path: Path, ios: int) -> None:
    rng = np.random.default_rng(1)
    centers, sizes = rng.uniform(0, 10, (1, 12, 2)), rng.uniform(2, 6, (1, 12, 2))
    boxes = np.concatenate([centers, sizes], axis=-1).astype(np.float32)
    scores = rng.uniform(0, 1, (1, 12, 1)).astype(np.float32)
    least = 0.3 if ios == 15 else 0.0

    def build(mb: Any, boxes: Any, scores: Any) -> Any:
        given = {"score_threshold": np.float32(least)} if ios == 15 else {}
        return mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=np.float32(0.2), max_boxes=8, **given
        )

    turned = [np.ascontiguousarray(np.swapaxes(value, 1, 2)) if ios == 17 else value for value in (boxes, scores)]
    came = run(tmp_path, build, {"boxes": turned[0], "scores": turned[1]}, ios=ios)
    (chosen,) = onnx_op(
        "NonMaxSuppression",
        boxes,
        np.ascontiguousarray(scores.swapaxes(1, 2)),
        np.array([8]),
        np.array([0.2], np.float32),
        np.array([least], np.float32),
        center_point_box=1,
    )
    count = len(chosen)
    assert 1 < count < 8
    indices = came[2][0]
    assert indices.tolist() == [*chosen[:, 2].tolist(), *[-1] * (8 - count)]
    kept, points = (np.swapaxes(value, 1, 2) if ios == 17 else value for value in came[:2])
    close(kept[0, :count], boxes[0, chosen[:, 2]])
    close(points[0, :count], scores[0, chosen[:, 2]])
    assert not kept[0, count:].any()
    if ios == 15:
        assert came[3].tolist() == [count]


def test_boxes_of_other_classes_are_no_rivals(tmp_path: Path) -> None:
    boxes = np.array([[[5, 5, 4, 4], [5, 5, 4, 4], [5, 5, 4, 3.9]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]], np.float32)

    def build(mb: Any, boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes,
            scores=scores,
            iou_threshold=np.float32(0.5),
            score_threshold=np.float32(0),
            max_boxes=3,
            per_class_suppression=True,
        )

    came = run(tmp_path, build, {"boxes": boxes, "scores": scores})
    assert came[2].tolist() == [[0, 1, -1]]


def test_random_numbers_are_of_their_distribution(tmp_path: Path) -> None:
    chances = np.array([[0.1, 0.7, 0.2]], np.float32)

    def build(mb: Any, chances: Any) -> Any:
        return (
            mb.random_bernoulli(shape=[4000], prob=0.3, seed=1),
            mb.random_normal(shape=[4000], mean=2.0, stddev=3.0, seed=2),
            mb.random_uniform(shape=[4000], low=-1.0, high=3.0, seed=3),
            mb.random_categorical(x=chances, mode="probs", size=4000, seed=4),
        )

    function = load(tmp_path, build, {"chances": chances})
    flips, normal, uniform, drawn = function.run({"chances": chances}).values()
    assert set(flips.tolist()) == {0, 1}
    assert abs(flips.mean() - 0.3) < 0.03
    assert abs(normal.mean() - 2) < 0.2
    assert abs(normal.std() - 3) < 0.2
    assert -1 <= uniform.min() < -0.9
    assert 2.9 < uniform.max() < 3
    assert np.allclose(np.bincount(drawn.astype(int).reshape(-1)) / 4000, chances[0], atol=0.03)
    again = function.run({"chances": chances}).values()
    np.testing.assert_array_equal(next(iter(again)), flips)
