"""Inputs, liveness and reports."""

import numpy as np
import pytest

from flagsplit.errors import InputError
from flagsplit.runtime.inputs import check_inputs, random_inputs
from flagsplit.runtime.liveness import Liveness, LivenessOptions
from flagsplit.runtime.manifest import Tensor
from flagsplit.runtime.report import make_report
from flagsplit.transport.messages import Hop, HopTiming

DECLARED = [
    Tensor(name="image", dtype="float32", shape=["batch", 3]),
    Tensor(name="mask", dtype="int64", shape=["batch", "width"]),
    Tensor(name="flag", dtype="bool", shape=[]),
]


def _given(**change: object) -> dict[str, object]:
    good = {
        "image": np.zeros((2, 3), np.float32),
        "mask": np.zeros((2, 5), np.int64),
        "flag": np.array(True),
    }
    return {**good, **change}


def test_good_inputs_come_back_in_order_as_copies() -> None:
    given = _given()
    checked = check_inputs(DECLARED, dict(reversed(given.items())))
    assert list(checked) == ["image", "mask", "flag"]
    assert all(checked[name] is not given[name] and checked[name].flags.owndata for name in checked)
    strided = np.zeros((3, 2), np.float32).T
    assert check_inputs(DECLARED, _given(image=strided))["image"].flags.c_contiguous
    assert check_inputs(DECLARED, _given(flag=True, mask=[[1, 2], [3, 4]]))["mask"].dtype == np.int64


def test_foreign_byte_order_is_turned_round() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], ">f4")
    checked = check_inputs(DECLARED, _given(image=array))["image"]
    assert checked.dtype == np.dtype("=f4")
    assert checked.dtype.isnative
    assert checked.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": np.zeros(1)}, ["'picture'", "expected inputs"]),
        ({"image": np.zeros((2, 3))}, ["float32", "float64", "astype"]),
        ({"image": np.zeros((2, 3, 1), np.float32)}, ["[batch, 3]", "[2, 3, 1]"]),
        ({"image": np.zeros((2, 4), np.float32)}, ["[batch, 3]", "[2, 4]"]),
        ({"mask": np.zeros((4, 5), np.int64)}, ["batch is 2 in input 'image'"]),
        ({"flag": np.zeros(1, bool)}, ["'flag'", "[]", "[1]"]),
        ({"image": [[1.0], [1.0, 2.0]]}, ["'image'", "float32"]),
        ({"image": None}, ["'image'", "float32", "object"]),
        ({"image": "abc"}, ["'image'", "float32"]),
    ],
)
def test_wrong_inputs_say_what_is_expected(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_inputs(DECLARED, _given(**change))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_input() -> None:
    with pytest.raises(InputError, match="expected inputs 'image', 'mask', 'flag', came none"):
        check_inputs(DECLARED, {})


def test_made_up_inputs_are_the_same_for_the_same_seed() -> None:
    dims = {"batch": 2, "width": 5}
    one, same, other = (random_inputs(DECLARED, dims, seed) for seed in (0, 0, 1))
    assert check_inputs(DECLARED, one).keys() == one.keys()
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["image"], other["image"])
    assert set(np.unique(one["mask"])) <= {0, 1}
    alone = random_inputs(DECLARED[:1], dims)
    assert np.array_equal(alone["image"], one["image"]), "an input does not depend on the others"
    assert random_inputs(DECLARED, {})["mask"].shape == (1, 1)


@pytest.mark.parametrize("dtype", ["string", "complex64", "bfloat16", "object", "nonsense"])
def test_not_everything_can_be_made_up(dtype: str) -> None:
    with pytest.raises(InputError, match="--input"):
        random_inputs([Tensor(name="x", dtype=dtype, shape=[1])], {})


def test_who_says_nothing_is_pinged_and_then_given_up() -> None:
    liveness = Liveness(LivenessOptions(heartbeat_s=1.0, missed=3))
    liveness.watch("quiet", 10.0)
    liveness.watch("lively", 10.0)
    assert liveness.next_tick() == 11.0
    assert liveness.tick(10.5) == ([], [])
    for now in (11.0, 12.0):
        assert liveness.tick(now) == (["quiet", "lively"], [])
        assert liveness.next_tick() == now + 1.0
        liveness.heard("lively", now)
    assert liveness.tick(13.0) == (["lively"], ["quiet"])
    liveness.forget("quiet")
    liveness.forget("quiet")
    liveness.heard("quiet", 13.0)
    assert liveness.tick(14.0) == (["lively"], [])


def test_a_silence_is_noticed_when_it_is_long_enough_and_not_a_beat_later() -> None:
    liveness = Liveness(LivenessOptions(heartbeat_s=1.0, missed=2.5))
    liveness.watch("quiet", 10.0)
    liveness.heard("quiet", 10.25)
    for now in (11.0, 12.0):
        assert liveness.next_tick() == now
        liveness.tick(now)
    assert liveness.next_tick() == 12.75
    assert liveness.tick(12.75) == ([], ["quiet"])


@pytest.mark.parametrize("jump_s", [500.0, -500.0])
def test_who_was_frozen_itself_gives_the_others_another_chance(jump_s: float) -> None:
    liveness = Liveness(LivenessOptions(heartbeat_s=1.0, missed=2.5))
    liveness.watch("peer", 1000.0)
    liveness.tick(1001.0)
    now = 1001.0 + jump_s
    assert liveness.tick(now) == (["peer"], [])
    assert now < liveness.next_tick() <= now + 1.0
    liveness.tick(now + 1.0)
    assert liveness.tick(now + 2.0)[1] == ["peer"]


def test_a_beat_is_due_even_with_nobody_to_ping() -> None:
    liveness = Liveness(LivenessOptions(heartbeat_s=2.0))
    liveness.tick(10.0)
    assert liveness.next_tick() == 12.0


def test_a_report_adds_up() -> None:
    route = (Hop("phone", "a"), Hop("edge", "b"), Hop("phone", "c"), Hop("edge", "d"), Hop("phone"))
    trace = (
        HopTiming("phone", "a", 1000, 2000, 0, 10),
        HopTiming("edge", "b", 500, 4000, 10, 20),
        HopTiming("phone", "c", 0, 1000, 20, 30),
        HopTiming("edge", "d", 500, 6000, 30, 40),
        HopTiming("phone", "", 0, 0, 40, 0),
    )
    report = make_report("best", 2, 0.5, route, trace)
    assert report.to_data() == {
        "plan": "best",
        "attempts": 2,
        "latency_ms": 500.0,
        "basis": "measured",
        "epoch": 0,
        "tiers": [
            {"tier": "phone", "segments": ["a", "c"], "wait_ms": 1.0, "run_ms": 3.0},
            {"tier": "edge", "segments": ["b", "d"], "wait_ms": 1.0, "run_ms": 10.0},
        ],
        "links": [
            {"from": "phone", "to": "edge", "bytes": 40, "messages": 2},
            {"from": "edge", "to": "phone", "bytes": 60, "messages": 2},
        ],
    }
    assert make_report("alone", 1, 0.1, route[:1], trace[:1]).links == ()
