"""Runs that are put together: which may be, that each gets its own results, and what one bad run does to the others."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.bundles import build_bundle, inputs_of
from tests.runtime.fake_segments import Host, Timed, wait_for

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.compare import compare
from flagsplit.errors import ConfigError, InputError, PeerError
from flagsplit.runtime.batching import BatchOptions, agree, can_batch, form_of, join, rows_of, split
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.runtime.session import Session, SessionSettings
from flagsplit.runtime.worker import Worker, WorkerSettings
from flagsplit.targets.interface import Array, LoadOptions, TensorSpec
from flagsplit.transport.memory import MemoryChannel, MemoryNetwork
from flagsplit.transport.messages import PeerAddress

EIGHT = BatchOptions(max_batch=8, max_wait_s=0.0)


def queued(segment: Timed, batching: BatchOptions | None, rows: tuple[int, ...], learned: bool = True) -> list[Ran]:
    """Runs with these rows that came while the engine was busy with another; their results in their order."""
    host = Host({("", "a"): segment, ("", "other"): Timed()}, batching=batching)
    host.engine.start(["a", "other"])
    if learned:
        host.segments["", "other"].gate.clear()
        host.submit(900, "other")
        wait_for(lambda: host.segments["", "other"].is_running)
        for token in (901, 902):
            host.submit(token)
        host.segments["", "other"].gate.set()
        host.answers(3)
        segment.rows.clear()
    host.segments["", "other"].gate.clear()
    host.submit(900, "other")
    wait_for(lambda: host.segments["", "other"].is_running)
    for token, count in enumerate(rows):
        host.submit(token, rows=count, client=str(token % 3))
    host.segments["", "other"].gate.set()
    found = sorted(host.answers(len(rows) + 1), key=lambda ran: ran.token)[:-1]
    host.engine.stop()
    return found


def test_runs_that_wait_run_together_and_each_gets_its_own() -> None:
    segment = Timed()
    found = queued(segment, EIGHT, (1, 2, 3, 1))
    assert segment.rows == [7]
    for token, (ran, rows) in enumerate(zip(found, (1, 2, 3, 1), strict=True)):
        assert ran.outputs is not None
        np.testing.assert_array_equal(ran.outputs["x"], np.full((rows, 3), token + 1, np.float32))
        assert (ran.batch, ran.error) == (4, "")
        assert ran.outputs["x"].base is None, "no result keeps the others alive"


def test_it_is_off_by_default_and_never_more_than_allowed() -> None:
    segment = Timed()
    assert {ran.batch for ran in queued(segment, None, (1,) * 5)} == {1}
    assert segment.rows == [1] * 5
    segment = Timed()
    assert [ran.batch for ran in queued(segment, BatchOptions(2, 0.0), (1,) * 5)].count(2) == 4
    assert sorted(segment.rows) == [1, 2, 2]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((("n", 3),), ((1, 3),)),
        ((("n", 3),), (("m", 3),)),
        ((("n", 3),), (("n", 3), ())),
        ((("n", "n"),), (("n", 3),)),
        (((4, 3),), ((4, 3),)),
        ((("?", 3),), (("?", 3),)),
        ((("n", 3), (3,)), (("n", 3),)),
        ((), (("n", 3),)),
    ],
)
def test_segments_that_cannot(
    inputs: tuple[tuple[int | str, ...], ...], outputs: tuple[tuple[int | str, ...], ...]
) -> None:
    segment = Timed()
    segment.inputs = tuple(TensorSpec(f"x{at}", "float32", shape) for at, shape in enumerate(inputs))
    segment.outputs = tuple(TensorSpec(f"y{at}", "float32", shape) for at, shape in enumerate(outputs))
    assert not can_batch(segment)
    assert can_batch(Timed())


def test_only_runs_of_one_form_are_joined() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert form_of({"x": zeros}) == form_of({"x": np.zeros((9, 3), np.float32)})
    assert form_of({"x": zeros}) != form_of({"x": np.zeros((2, 4), np.float32)})
    assert form_of({"x": zeros}) != form_of({"x": zeros.astype(np.float64)})
    assert form_of({"x": zeros, "y": np.zeros((1, 3), np.float32)}) is None
    assert form_of({"x": np.zeros((), np.float32)}) is None


def test_joining_and_splitting_are_each_others_inverse() -> None:
    parts = [{"x": np.arange(rows * 2).reshape(rows, 2), "y": np.ones(rows)} for rows in (3, 0, 1)]
    whole = join(parts)
    apart = split(whole, [rows_of(part) for part in parts])
    assert apart is not None
    for part, came in zip(parts, apart, strict=True):
        for name in part:
            np.testing.assert_array_equal(part[name], came[name])
    assert split({"x": np.zeros(3)}, [1, 1]) is None
    assert split({"x": np.zeros(())}, [1, 1]) is None


def test_results_agree_but_for_rounding() -> None:
    exact = {"x": np.array([1.0, np.nan, np.inf, -2.0], np.float32)}
    assert agree({"x": exact["x"] * np.float32(1 + 1e-6)}, exact)
    assert not agree({"x": exact["x"] * np.float32(1.01)}, exact)
    assert not agree({"x": exact["x"].astype(np.float64)}, exact)
    assert not agree({"x": exact["x"][:2]}, exact)
    assert not agree({}, exact)
    assert not agree({"x": np.array([1, 2])}, {"x": np.array([1, 3])})


class Choosy(Timed):
    """Refuses a row of sevens, and what is with it."""

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if (tensors["x"] == 2).any():
            raise InputError("no twos")
        return super().run(tensors)


def test_one_bad_run_does_not_fail_the_others() -> None:
    found = queued(Choosy(), EIGHT, (1,) * 4)
    assert [ran.error for ran in found] == ["", "", "no twos", ""]
    assert {ran.batch for ran in found} == {1}


class Mixing(Timed):
    """Its rows depend on each other, though its shapes do not say so."""

    def answer(self, x: Array) -> dict[str, Array]:
        return {"x": x / x.sum(axis=0)}


def test_a_segment_whose_rows_depend_on_each_other_is_found_out_at_its_first_batch() -> None:
    segment = Mixing()
    found = queued(segment, EIGHT, (1,) * 4)
    assert segment.rows == [1] * 4
    for ran in found[1:]:
        assert ran.outputs is not None
        np.testing.assert_array_equal(ran.outputs["x"], np.ones((1, 3)))
    segment = Mixing()
    found = queued(segment, EIGHT, (2,) * 3, learned=False)
    assert segment.rows == [6, 2, 2, 2, 2]
    assert {ran.batch for ran in found} == {1}


class Loses(Timed):
    """Gives another number of rows."""

    def answer(self, x: Array) -> dict[str, Array]:
        return {"x": x[:1]}


def test_a_segment_that_gives_other_rows_is_run_one_by_one() -> None:
    found = queued(Loses(), EIGHT, (2, 2), learned=False)
    assert [ran.batch for ran in found] == [1, 1]
    assert all(ran.outputs is not None and len(ran.outputs["x"]) == 1 for ran in found)


def test_a_run_waits_for_others_only_so_long_and_only_while_there_is_nothing_else() -> None:
    host = Host({("", "a"): Timed(), ("", "b"): Timed()}, batching=BatchOptions(2, 0.05))
    host.segments["", "b"].inputs = (TensorSpec("x", "float32", (1, 3)),)
    host.engine.start(["a", "b"])
    host.submit(1)
    (alone,) = host.answers(1)
    assert 50_000 <= alone.wait_us < 200_000
    host.submit(2)
    host.submit(3)
    both = host.answers(2)
    assert max(ran.wait_us for ran in both) < 40_000, "the batch was full"
    host.submit(4)
    host.submit(5, "b")
    assert max(ran.wait_us for ran in host.answers(2) if ran.token == 4) < 40_000
    host.engine.stop()


def test_a_run_does_not_wait_beyond_its_deadline() -> None:
    host = Host({("", "a"): Timed()}, batching=BatchOptions(2, 5.0))
    host.engine.start(["a"])
    inputs = {"x": np.zeros((1, 3), np.float32)}
    host.engine.submit(Run(1, "a", inputs, deadline=time.monotonic() + 0.05))
    (ran,) = host.answers(1)
    assert ran.wait_us < 1_000_000
    host.engine.stop()


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="max_batch"):
        BatchOptions(max_batch=0)
    for wait_s in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="max_wait_s"):
            BatchOptions(max_wait_s=wait_s)


@pytest.mark.slow
def test_sessions_of_a_worker_with_batches_get_their_own_answers(tmp_path: Path) -> None:
    bundle = flagsplit.open(build_bundle(tmp_path), cache=tmp_path)
    network = MemoryNetwork()
    settings = WorkerSettings(batching=BatchOptions(4, 0.02))
    workers = [Worker(bundle, at, MemoryChannel(network), f"mem://{bundle.tiers[at]}", settings) for at in (1, 2)]
    addresses = {tier: PeerAddress(f"mem://{tier}") for tier in bundle.tiers[1:]}
    whole = bundle.load_whole(LoadOptions(threads=1))
    sessions = [Session(bundle, addresses, MemoryChannel(network), SessionSettings(connect_s=5.0)) for _ in range(3)]
    pending = [(at, sessions[at % 3].submit(inputs_of(at, batch=1 + at % 2), plan="plan1")) for at in range(36)]
    for at, future in pending:
        expected = whole.run(inputs_of(at, batch=1 + at % 2))
        assert compare(expected, future.result(20))["y"].max_rel <= 1e-4
    for session in sessions:
        session.close()
    for worker in workers:
        worker.stop()
    whole.close()


MODELS = {"ppocr-cls": {}, "ppocr-rec": {"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 96}}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_segments_answer_the_same_together_as_alone(name: str, tmp_path: Path) -> None:
    try:
        model = zoo.pull(name)
    except PeerError as error:
        pytest.skip(str(error))
    sla = {"keep_on": {"inputs": "phone"}}
    built = flagsplit.build(model, "phone,cloud", tmp_path / "x.flagsplit", dims=MODELS[name], sla=sla)
    bundle = flagsplit.open(built.path, cache=tmp_path)
    results: list[Ran] = []
    host = LoadOptions(threads=1)
    engine = Engine(lambda _, segment: bundle.load(1, segment, host), (), {}, 1e12, results.append, batching=EIGHT)
    segments = [segment for segment in bundle.segments_of(1) if _is_open(bundle.load(1, segment, host))]
    assert segments
    engine.start(segments[:1])
    random = np.random.default_rng(0)
    executable = bundle.load(1, segments[0], host)
    requests = [
        {spec.name: random.standard_normal(_sizes(spec)).astype(spec.dtype) for spec in executable.inputs}
        for _ in range(24)
    ]
    for token, inputs in enumerate(requests):
        engine.submit(Run(token, segments[0], inputs, client=str(token % 3)))
    wait_for(lambda: len(results) == len(requests), 60)
    engine.stop()
    assert max(ran.batch for ran in results) == 8
    for ran in results:
        assert ran.outputs is not None
        for difference in compare(executable.run(requests[ran.token]), ran.outputs).values():
            assert difference.max_rel <= 1e-4


def _is_open(executable: object) -> bool:
    return can_batch(executable)  # type: ignore[arg-type]


def _sizes(spec: TensorSpec) -> list[int]:
    """One row, and small numbers for what is open otherwise."""
    return [dim if isinstance(dim, int) else 1 if at == 0 else 24 for at, dim in enumerate(spec.shape)]
