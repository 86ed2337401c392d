"""When squeezing pays: the rules one by one, and whole histories against a brute-force oracle."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagsplit.transport.messages import FEATURES, LZ4, ZSTD
from flagsplit.transport.squeeze import KINDS, SqueezeSpeed
from flagsplit.transport.squeeze_policy import (
    PLAIN,
    SqueezeDecision,
    SqueezeOptions,
    SqueezePolicy,
    kept_share,
    sample_of,
)

MB = 1_000_000.0
SPEEDS = {LZ4: SqueezeSpeed(500 * MB, 2000 * MB), ZSTD: SqueezeSpeed(300 * MB, 800 * MB)}
OPTIONS = SqueezeOptions()
DATA = memoryview(bytes(1 << 20))


@dataclass
class World:
    """A policy, what its samples will say, and what it did."""

    kept: dict[str, float]
    speeds: Mapping[str, SqueezeSpeed] = field(default_factory=lambda: SPEEDS)
    options: SqueezeOptions = OPTIONS
    data: memoryview = DATA
    samples: list[str] = field(default_factory=list)
    log: list[SqueezeDecision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = SqueezePolicy(lambda: self.speeds, self.options, self.log.append, self._measure)

    def _measure(self, data: memoryview, kind: str) -> float:
        self.samples.append(kind)
        return self.kept[kind]

    def ask(self, goodput: float, kinds: tuple[str, ...] = KINDS, tensor: str = "t") -> str:
        return self.policy.choose("edge", tensor, self.data, goodput, kinds)

    def request(self, goodput: float, kinds: tuple[str, ...] = KINDS) -> tuple[str, float]:
        """A request with a tensor that is as its samples say: the kind, and seconds with sampling."""
        before = len(self.samples)
        kind = self.ask(goodput, kinds)
        sample_bytes = self.options.bytes_sampled(self.data.nbytes)
        spent = sum(sample_bytes / self.speeds[each].squeeze_bytes_s for each in self.samples[before:])
        if kind:
            self.policy.sent("edge", "t", kind, self.data.nbytes, round(self.kept[kind] * self.data.nbytes))
        return kind, spent + self.time_s(kind, goodput)

    def time_s(self, kind: str, goodput: float) -> float:
        per_byte = self.kept[kind] / goodput + self.speeds[kind].cost_s_per_byte if kind else 1 / goodput
        return per_byte * self.data.nbytes


def test_a_change_takes_two_requests() -> None:
    world = World({LZ4: 0.5, ZSTD: 0.3})
    assert [world.ask(2 * MB) for _ in range(3)] == [PLAIN, ZSTD, ZSTD]
    first, second = world.log
    assert (first.kind, first.sampled, first.kept) == (PLAIN, True, {LZ4: 0.5, ZSTD: 0.3})
    assert (second.kind, second.before, second.sampled) == (ZSTD, PLAIN, False)
    assert second.ns_per_byte[PLAIN] == pytest.approx(500)
    assert second.ns_per_byte[ZSTD] == pytest.approx(150 + 1000 / 300 + 1000 / 800)
    assert "saves 69%" in second.reason
    assert "1 of 2" in first.reason


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_pays_below_the_formula(kind: str, kept: float) -> None:
    """B = (1 - 1/ratio) / (1/enc + 1/dec), and a change to it must save a fifth."""
    options = SqueezeOptions(zstd_below_bytes_s=1e12)
    bound = (1 - kept) / SPEEDS[kind].cost_s_per_byte
    world = World({kind: kept}, options=options)
    assert all(world.ask(bound * 1.001, (kind,)) == PLAIN for _ in range(5))
    fifth_off = (0.8 - kept) / SPEEDS[kind].cost_s_per_byte
    assert [world.ask(fifth_off * 0.999, (kind,)) for _ in range(2)] == [PLAIN, kind]
    # It stays while it is no slower than plain.
    assert [world.ask(bound * share, (kind,)) for share in (0.999, 1.001)] == [kind, PLAIN]


def test_zstd_only_on_slow_links_and_if_it_shrinks() -> None:
    limit = OPTIONS.zstd_below_bytes_s
    world = World({LZ4: 0.9, ZSTD: 0.2})
    assert [world.ask(limit * 1.001) for _ in range(3)] == [PLAIN] * 3
    assert [world.ask(limit * 0.999) for _ in range(2)] == [PLAIN, ZSTD]
    # Around the limit it does not flap.
    assert {world.ask(limit * share) for share in (1.1, 0.9, 1.19, 0.5)} == {ZSTD}
    assert world.ask(limit * 1.21) == PLAIN
    assert world.log[-1].reason == "what was used is no longer allowed here"
    barely = World({LZ4: 1.0, ZSTD: 0.9}, options=SqueezeOptions(better_by=0.01))
    assert {barely.ask(1 * MB) for _ in range(5)} == {PLAIN}
    assert ZSTD not in barely.log[-1].ns_per_byte


def test_only_kinds_that_the_peer_named() -> None:
    world = World({LZ4: 0.5, ZSTD: 0.1})
    assert [world.ask(1 * MB, (LZ4,)) for _ in range(2)] == [PLAIN, LZ4]
    assert world.samples == [LZ4]
    assert world.policy.on_link("edge", 1 * MB, ("credit",)) is None
    assert world.policy.on_link("edge", 0, FEATURES) is None
    link = world.policy.on_link("edge", 1 * MB, ("credit", LZ4))
    assert link is not None
    assert link.kind_for("t", DATA) == LZ4
    # A new connection may be to a peer that reads less.
    assert world.ask(1 * MB, ()) == PLAIN


def test_small_tensors_and_fast_links_are_not_even_sampled() -> None:
    world = World({LZ4: 0.01, ZSTD: 0.01})
    assert world.ask(0.8 / SPEEDS[LZ4].cost_s_per_byte) == PLAIN
    world.data = DATA[: OPTIONS.least_bytes - 1]
    assert world.ask(1 * MB) == PLAIN
    world.data = DATA[:9_999]
    assert world.ask(20 * MB) == PLAIN, "it takes less than half a millisecond"
    assert world.samples == []
    assert world.log == []


def test_samples_again_after_some_requests_and_when_the_link_changes() -> None:
    world = World({LZ4: 0.9, ZSTD: 0.95})
    for _ in range(OPTIONS.sample_every + 1):
        world.ask(1 * MB)
    assert len(world.samples) == 4
    assert world.ask(1.4 * MB) == PLAIN
    assert len(world.samples) == 4
    for goodput in (1.6 * MB, 0.6 * MB):
        before = len(world.samples)
        for _ in range(OPTIONS.sample_rests):
            world.ask(goodput)
        assert len(world.samples) == before + 2


def test_a_sample_that_lied_costs_one_request() -> None:
    world = World({LZ4: 1.0, ZSTD: 0.2})
    kinds = []
    for _ in range(10):
        kinds.append(world.ask(1 * MB))
        if kinds[-1]:
            world.policy.sent("edge", "t", kinds[-1], 1000, 1000)
    assert kinds == [PLAIN, ZSTD] + [PLAIN] * 8
    assert world.log[-1].kept[ZSTD] == 1.0


def test_tensors_and_links_are_apart_and_forgotten_in_time() -> None:
    world = World({LZ4: 0.5, ZSTD: 0.2}, options=SqueezeOptions(most_tensors=2))
    assert [world.ask(1 * MB, tensor=name) for name in "aabab"] == [PLAIN, ZSTD, PLAIN, ZSTD, ZSTD]
    assert world.policy.choose("cloud", "a", DATA, 1 * MB, KINDS) == PLAIN
    assert [world.ask(1 * MB, tensor=name) for name in "ba"] == [ZSTD, PLAIN]


def test_samples_are_spread_and_real() -> None:
    data = np.arange(1 << 18, dtype=np.uint32).view(np.uint8).data
    sample = sample_of(data, 64 << 10)
    words = np.frombuffer(sample, np.uint32)
    assert sample.nbytes == 64 << 10
    assert words[0] == 0
    assert words[-1] == (1 << 18) - 1
    assert np.count_nonzero(np.diff(words) != 1) == 3
    assert sample_of(data[:100], 64 << 10).nbytes == 100
    assert kept_share(memoryview(bytes(5000)), ZSTD) < 0.02
    assert kept_share(memoryview(np.random.default_rng(0).bytes(5000)), LZ4) == 1.0


def random_world(rng: random.Random) -> World:
    speeds = {kind: SqueezeSpeed(10 ** rng.uniform(7.5, 9.5), 10 ** rng.uniform(8, 10)) for kind in KINDS}
    kept = {kind: rng.choice((1.0, rng.uniform(0.02, 1.0))) for kind in KINDS}
    return World(kept, speeds, data=DATA[: rng.choice((OPTIONS.least_bytes, 50_000, len(DATA)))])


def allowed(world: World, kind: str, goodput: float) -> bool:
    if len(world.data) < OPTIONS.least_s * goodput:
        return False
    return kind != ZSTD or (goodput < OPTIONS.zstd_below_bytes_s and world.kept[ZSTD] < 0.9)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_histories_are_never_much_worse_than_plain(seed: int) -> None:
    """Random ratios and speeds, and a link that wanders or jumps: within 5 % of plain, samples included."""
    rng = random.Random(seed)
    world = random_world(rng)
    goodput = 10 ** rng.uniform(5, 9.5)
    jumps = rng.choice((0.0, 0.1, 1.0))
    spent = plain = 0.0
    for _ in range(200):
        goodput *= 10 ** (rng.uniform(-1, 1) if rng.random() < jumps else rng.gauss(0, 0.05))
        goodput = min(max(goodput, 1e4), 1e10)
        before_s = world.time_s(PLAIN, goodput)
        kind, time_s = world.request(goodput)
        assert world.time_s(kind, goodput) <= before_s * (1 + 1e-3)
        spent, plain = spent + time_s, plain + before_s
    assert spent <= 1.05 * plain


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_on_a_steady_link_it_settles_near_the_best(seed: int) -> None:
    """Against every allowed choice: what is kept is at most the hysteresis from the best, stays, and pays."""
    rng = random.Random(seed)
    world = random_world(rng)
    goodput = 10 ** rng.uniform(5, 9.5)
    kinds = tuple(kind for kind in KINDS if rng.random() < 0.8)
    history = [world.request(goodput, kinds) for _ in range(150)]
    chosen = [kind for kind, _ in history]
    assert len(set(chosen[2:])) == 1
    choices = [PLAIN, *(kind for kind in kinds if allowed(world, kind, goodput))]
    assert chosen[-1] in choices
    best = min(world.time_s(kind, goodput) for kind in choices)
    assert best >= (1 - OPTIONS.better_by) * world.time_s(chosen[-1], goodput) * (1 - 1e-3)
    assert sum(time_s for _, time_s in history) <= 1.05 * len(history) * world.time_s(PLAIN, goodput)
