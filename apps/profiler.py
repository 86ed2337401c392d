"""Makes a profile: times blocks of a bundle's graph on this host and works out what each adds to a segment.

A block that runs alone also pays for the run itself and for tensors that stay inside the engine when its neighbors run
with it. So chains of measured blocks are timed too: what they save against their blocks alone gives the cost of a run
and of a byte that crosses a cut, and those are taken off. The timing is in `flagsplit.apps.segment_timer`.
"""

import datetime as dt
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps.segment_timer import EMPTY, SegmentTimer
from flagsplit.errors import ConfigError
from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.calibration import boundary_bytes
from flagsplit.splitter.costs import Tier, model_costs
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.profiles import BlockTime, Profile
from flagsplit.splitter.regression import features_of_block
from flagsplit.splitter.sampling import blocks_to_measure

_LONGEST_CHAIN = 6
_MOST_CHAINS = 40
_LEAST_SHARE_ADDED = 0.1
"""A block adds at least this share of what it took alone, whatever the overheads are said to be."""
_ANY_DEVICE = "generic-edge-cpu"
_NOISE_SHARE = 0.02
_NOISE_S = 5e-6
"""How far a sum of measured times may be off: a share of it, and a part that is always there."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ProfileOptions:
    """Choices of a profile.

    Attributes:
        share: of the blocks, how many may be measured, above 0 and at most 1.
        threads: of one run; 0 lets the engine choose.
        seconds: for how long to time, once everything is loaded.
    """

    share: float = 1.0
    threads: int = 1
    seconds: float = 20.0


@dataclass(frozen=True)
class ProfileResult:
    """A profile and what it covers.

    Attributes:
        profile: the profile.
        graph: the blocks of the bundle.
        measured: indices of the blocks that were timed.
        rounds: how often each was.
    """

    profile: Profile
    graph: BlockGraph
    measured: tuple[int, ...]
    rounds: int


def profile_bundle(
    bundle: Bundle,
    tier: str,
    options: ProfileOptions | None = None,
    progress: Progress = lambda _what, _share: None,
) -> ProfileResult:
    """Measure a tier of a bundle on this host.

    Args:
        bundle: the bundle.
        tier: name of the tier whose target to time.
        options: how much, how long.
        progress: told what is being done and the share done, 0 to 1.

    Raises:
        PolicyError: the bundle has no such tier.
        ConfigError: an option makes no sense, or the target cannot run here.
        InputError: inputs cannot be made up for this model.
    """
    options = options or ProfileOptions()
    if not 0 < options.share <= 1:
        raise ConfigError(f"share: expected above 0 and at most 1, came {options.share:g}")
    if not 0 < options.seconds < float("inf"):
        raise ConfigError(f"seconds: expected a time above 0, came {options.seconds:g}")
    position = bundle.tier_index(tier)
    progress("load", 0.0)
    with SegmentTimer(bundle, position, options.threads) as timer:
        device = bundle.facts.tiers[position].device
        found = blocks_to_measure(timer.graph, _modelled(timer.graph, device), options.share)
        chosen = tuple(index for index in found if timer.graph.blocks[index].signature)
        if not chosen:
            raise ConfigError(
                f"{bundle.path}: nothing of it can be timed: how often its loop runs depends on the input"
            )
        chains = chains_of(chosen)
        parts = [(EMPTY,), *((index,) for index in chosen), *chains]
        times = timer.time(parts, options.seconds, lambda share: progress("measure", share))
        progress("done", 1.0)
        return ProfileResult(_profile(timer, device, options, chosen, chains, times), timer.graph, chosen, len(times))


def chains_of(chosen: Sequence[int]) -> list[tuple[int, ...]]:
    """Runs of neighbors among the measured blocks, to be timed as one segment each; at most `_MOST_CHAINS`.

    Blocks are in topological order, so neighbors always form a convex segment.
    """
    runs: list[list[int]] = []
    for index in chosen:
        if runs and runs[-1][-1] == index - 1 and len(runs[-1]) < _LONGEST_CHAIN:
            runs[-1].append(index)
        else:
            runs.append([index])
    found = [tuple(run) for run in runs if len(run) > 1]
    step = -(-len(found) // _MOST_CHAINS)
    return found[:: step or 1]


def low_decile(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest tenth of each column: interruptions only ever make a run slower, so the low end says what it takes."""
    return np.asarray(np.quantile(times, 0.1, axis=0))


def _modelled(graph: BlockGraph, device: str) -> NDArray[np.float64]:
    """What blocks weigh against each other; a device of the user's own counts as an ordinary one."""
    devices = load_catalogue().devices
    return model_costs(graph, [Tier("edge", devices.get(device, devices[_ANY_DEVICE]))], []).seconds[:, 0]


def _profile(
    timer: SegmentTimer,
    device: str,
    options: ProfileOptions,
    chosen: Sequence[int],
    chains: Sequence[Sequence[int]],
    times: NDArray[np.float64],
) -> Profile:
    low, middle = low_decile(times), np.median(times, axis=0)
    alone = dict(zip(chosen, low[1:].tolist(), strict=False))
    run_s, byte_s = overheads(
        timer.graph, (float(low[0]), timer.copy_s_per_byte / 2), alone, chains, low[1 + len(chosen) :]
    )
    blocks: dict[str, BlockTime] = {}
    for at, index in enumerate(chosen, start=1):
        block = timer.graph.blocks[index]
        if block.signature in blocks and blocks[block.signature].seconds <= low[at]:
            continue
        crossing = (block.read_bytes + block.write_bytes) / 2
        blocks[block.signature] = BlockTime(
            name=block.name,
            seconds=float(low[at]),
            added_s=max(float(low[at]) - run_s - byte_s * crossing, _LEAST_SHARE_ADDED * float(low[at])),
            spread=float(middle[at] / low[at] - 1),
            runs=len(times),
            features=features_of_block(block),
        )
    described = timer.target.describe()
    return Profile(
        version=1,
        basis="measured" if described.runs_here == "yes" else "emulated",
        device=device,
        host=f"{platform.machine()}, {platform.system()}",
        target=described.name,
        target_version=described.version,
        threads=options.threads,
        numerics=timer.numerics,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        run_s=run_s,
        boundary_s_per_byte=byte_s,
        blocks=blocks,
    )


def overheads(
    graph: BlockGraph,
    guess: tuple[float, float],
    alone: Mapping[int, float],
    chains: Sequence[Sequence[int]],
    together: NDArray[np.float64],
) -> tuple[float, float]:
    """Seconds per run of a segment and per byte that crosses a cut, neither below zero.

    Chains say it: what one saves against its blocks alone is a run for each cut it does without, and the bytes that
    stay inside. They are weighed by how well each is known, and so is the guess, which stands where there are none.

    Args:
        graph: the blocks.
        guess: the two figures as they are without any chain, s and s per byte.
        alone: a run of each measured block, s.
        chains: indices of the blocks of each chain.
        together: a run of each chain, s.
    """
    rows, saved, known_to = [[1.0, 0.0], [0.0, 1.0]], list(guess), [max(each, 1e-13) for each in guess]
    for chain, took in zip(chains, together, strict=True):
        crossing = sum(graph.blocks[index].read_bytes + graph.blocks[index].write_bytes for index in chain)
        apart = sum(alone[index] for index in chain)
        rows.append([len(chain) - 1.0, (crossing - boundary_bytes(graph, chain)) / 2])
        saved.append(apart - float(took))
        known_to.append(math.hypot(_NOISE_SHARE * apart, _NOISE_S))
    weights, scale = 1 / np.array(known_to), np.array(known_to[:2])
    matrix = np.array(rows) * scale * weights[:, None]
    target = np.array(saved) * weights
    best = min(_fits(matrix, target), key=lambda factors: float(np.sum((matrix @ factors - target) ** 2)))
    return float(best[0] * scale[0]), float(best[1] * scale[1])


def _fits(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Least squares for two unknowns, both free or one of them zero; those without a negative."""
    both: NDArray[np.float64] = np.asarray(np.linalg.lstsq(matrix, target, rcond=None)[0], np.float64)
    first, second = (max(float(column @ target / (column @ column)), 0.0) for column in matrix.T)
    found = [np.array([first, 0.0]), np.array([0.0, second])]
    return [both, *found] if (both >= 0).all() else found
