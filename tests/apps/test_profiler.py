"""The profiler: what is timed, and how overheads come out of chains. The command is in `cli/test_profile.py`."""

from pathlib import Path

import numpy as np
import pytest

import flagsplit
from flagsplit.apps.profiler import ProfileOptions, chains_of, overheads, profile_bundle
from flagsplit.apps.segment_timer import EMPTY, LEAST_ROUNDS, SegmentTimer
from flagsplit.errors import ConfigError, PolicyError
from flagsplit.splitter.calibration import boundary_bytes
from flagsplit.splitter.testing import cnn


def test_chains_are_runs_of_neighbors() -> None:
    assert chains_of([0, 1, 2, 5, 7, 8]) == [(0, 1, 2), (7, 8)]
    assert chains_of([0, 2, 4]) == []
    assert chains_of(range(8)) == [(0, 1, 2, 3, 4, 5), (6, 7)]
    assert len(chains_of([i for i in range(1000) if i % 3])) <= 40


def test_overheads_are_what_chains_save() -> None:
    graph = cnn(stages=6, depth=10)
    run_s, byte_s = 3e-5, 2e-10

    def took(blocks: tuple[int, ...]) -> float:
        return 1e-4 * len(blocks) + run_s + byte_s * boundary_bytes(graph, blocks) / 2

    alone = {block.index: took((block.index,)) for block in graph.blocks}
    chains = chains_of(range(len(graph.blocks)))
    found = overheads(graph, (1e-5, 1e-10), alone, chains, np.array([took(chain) for chain in chains]))
    assert found == pytest.approx((run_s, byte_s), rel=0.1)
    assert overheads(graph, (1e-5, 1e-11), alone, [], np.array([])) == pytest.approx((1e-5, 1e-11))


def test_overheads_are_never_negative() -> None:
    graph = cnn()
    alone = dict.fromkeys(range(len(graph.blocks)), 1e-3)
    chains = chains_of(range(len(graph.blocks)))
    found = overheads(graph, (1e-5, 1e-11), alone, chains, np.array([2e-3 * len(chain) for chain in chains]))
    assert min(found) >= 0


@pytest.mark.slow
def test_segments_of_any_size_are_timed(own_folders: None, small_bundle: Path) -> None:
    with SegmentTimer(flagsplit.open(small_bundle), 1) as timer:
        count = len(timer.graph.blocks)
        parts = [(EMPTY,), (0,), (count - 1,), tuple(range(count))]
        times = timer.time(parts, 1e-6)
        assert times.shape == (LEAST_ROUNDS, len(parts))
        assert (times > 0).all()
        assert timer.copy_s_per_byte > 0


@pytest.mark.slow
def test_a_share_of_the_blocks(own_folders: None, small_bundle: Path) -> None:
    result = profile_bundle(flagsplit.open(small_bundle), "edge", ProfileOptions(share=0.5, seconds=0.01))
    assert len(result.measured) == len(result.graph.blocks) // 2
    known = {result.graph.blocks[i].signature for i in result.measured}
    assert set(result.profile.blocks) == known
    assert all(0 < block.added_s <= block.seconds for block in result.profile.blocks.values())


def test_options_that_make_no_sense(own_folders: None, small_bundle: Path) -> None:
    bundle = flagsplit.open(small_bundle)
    for options, says in (
        (ProfileOptions(share=0), "share: expected above 0"),
        (ProfileOptions(share=1.5), "share: expected above 0"),
        (ProfileOptions(seconds=0), "seconds: expected a time above 0"),
        (ProfileOptions(seconds=float("nan")), "seconds: expected a time above 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            profile_bundle(bundle, "edge", options)
    with pytest.raises(PolicyError, match="expected a tier"):
        profile_bundle(bundle, "moon")
