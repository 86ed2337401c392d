"""What makes bundles buckets of one model, and what does not."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flagsplit.errors import ConfigError
from flagsplit.runtime.bucket_shapes import bucket_shapes
from flagsplit.runtime.manifest import Facts, Model, Tensor, Tier, TierArtifact

Dims = Sequence[int | str]


def facts(*inputs: Dims, outputs: Sequence[Dims] = ((3,),), **more: Any) -> Facts:
    """Facts of a bundle with inputs `a`, `b` and outputs `y`, `z` of these shapes."""
    artifact = TierArtifact(target="ort", version="1", folder="f", entries={})
    fields: dict[str, Any] = {
        "format": (1, 1),
        "model": Model(name="m", sha256="0" * 64),
        "tiers": [Tier(name="phone", device="pixel", artifacts=[artifact])],
        "inputs": [Tensor(name=n, dtype="float32", shape=list(s)) for n, s in zip("ab", inputs, strict=False)],
        "outputs": [Tensor(name=n, dtype="float32", shape=list(s)) for n, s in zip("yz", outputs, strict=False)],
        "nominal_dims": {},
        "weights_bytes": 0,
        "sizes": {},
    }
    return Facts(**{**fields, **more})


def test_the_axes_are_those_whose_sizes_differ() -> None:
    sizes = (8, 2, 4)
    shapes = bucket_shapes([facts((n, 4, n), (3, n), outputs=((4, n), (n,))) for n in sizes], "n")
    assert (shapes.symbol, shapes.sizes) == ("n", sizes)
    assert [list(tensor.shape) for tensor in shapes.inputs] == [["n", 4, "n"], [3, "n"]]
    assert [list(tensor.shape) for tensor in shapes.outputs] == [[4, "n"], ["n"]]
    assert [shapes.axes(tensor) for tensor in (*shapes.inputs, *shapes.outputs)] == [(0, 2), (1,), (1,), (0,)]


def test_a_range_of_one_size_is_a_size_and_names_it() -> None:
    def pinned(n: int) -> Facts:
        return facts(("batch", "time"), outputs=(("batch", "time"),), dim_ranges={"batch": (n, n), "time": (1, 9)})

    shapes = bucket_shapes([pinned(1), pinned(4)])
    assert (shapes.symbol, shapes.sizes) == ("batch", (1, 4))
    assert list(shapes.inputs[0].shape) == list(shapes.outputs[0].shape) == ["batch", "time"]


def test_outputs_that_cannot_be_cropped_are_refused_unless_nobody_crops() -> None:
    made = [facts((n, 3), outputs=((n // 8, 5),)) for n in (320, 640)]
    with pytest.raises(ConfigError, match=r"axis 0 of output 'y' is \[40, 80\].*crop=False"):
        bucket_shapes(made)
    assert bucket_shapes(made, crop=False).sizes == (320, 640)
    with pytest.raises(ConfigError, match="cannot tell how to crop"):
        bucket_shapes([facts((n,), outputs=(("found",),)) for n in (1, 2)])


OTHER_TIER = [Tier(name="edge", device="pi", artifacts=[TierArtifact(target="t", version="", folder="f", entries={})])]
AS_INTEGERS = [Tensor(name="a", dtype="int64", shape=[4])]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: facts((4,), tiers=OTHER_TIER), r"their tiers are \['phone=pixel \(ort\)'\] and \['edge=pi \(t\)'\]"),
        (lambda: facts((4,), inputs=AS_INTEGERS), "their inputs are .*float32.*int64"),
        (lambda: facts((4,), (4,)), "their inputs are"),
        (lambda: facts((4, 1)), "of rank 1.*of rank 2"),
        (lambda: facts((4,), outputs=((3, 1),)), "their outputs are"),
        (lambda: facts((4,), outputs=((4,),), dim_ranges={"t": (1, 5)}), "their ranges are"),
        (lambda: facts(("n",)), r"expected another fixed size in each bundle, came \[2, 'n'\] at axis 0 of input 'a'"),
        (lambda: facts((2,)), "all take the same shapes; fix a size in each, such as --dim batch=8..8"),
    ],
)
def test_bundles_that_differ_in_more_are_refused(second: Callable[[], Facts], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bucket_shapes([facts((2,)), second()])


def test_two_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one size alone, came \[1, 2\] at axis 0.* and \[5, 6\] at axis 1"):
        bucket_shapes([facts((1, 5)), facts((2, 6))])


def test_too_few_and_repeated_bundles_are_refused() -> None:
    with pytest.raises(ConfigError, match="two sizes or more, came 1"):
        bucket_shapes([facts((2,))])
    with pytest.raises(ConfigError, match=r"another fixed size in each bundle, came \[1, 2, 1\]"):
        bucket_shapes([facts((1,)), facts((2,)), facts((1,))])


def test_the_name_must_be_free() -> None:
    made = [facts((n, "size")) for n in (1, 2)]
    with pytest.raises(ConfigError, match="'size' is open in the bundles"):
        bucket_shapes(made)
    assert bucket_shapes(made, "batch").symbol == "batch"
