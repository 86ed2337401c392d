"""The states of the world that a pool is built for: a box of factors on nominal links and tiers, and its corners."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flagsplit.splitter.state import State

_LARGE = 800
_SAMPLES, _SAMPLES_IF_LARGE = 48, 12


@dataclass(frozen=True)
class Grid:
    """Factors on the nominal links and tiers; the pool is built, and certified, for the box that they span.

    Attributes:
        bandwidth: of each link.
        rtt: of all round trips together.
        slowdown: of each tier beyond the first. The first is taken at its own speed: what counts is the relation.
    """

    bandwidth: tuple[float, ...]
    rtt: tuple[float, ...]
    slowdown: tuple[float, ...] = (1.0, 4.0)

    @classmethod
    def for_links(cls, links: int, blocks: int = 0) -> "Grid":
        """A grid whose number of states stays near 200 for any number of links, and below 40 for large graphs."""
        if blocks > _LARGE and links <= 2:
            return cls((1 / 16, 1.0, 16.0), (1.0,))
        if links <= 2:
            return cls((1 / 16, 1 / 4, 1.0, 4.0, 16.0), (0.25, 4.0))
        return cls((1 / 8, 8.0), (0.25, 4.0))

    def _axes(self, tiers: int, links: int) -> list[tuple[float, ...]]:
        if tiers == 1:
            return [(1.0,)]
        return [*([self.slowdown] * (tiers - 1)), *([self.bandwidth] * links), self.rtt]

    def _state(self, nominal: State, factors: tuple[float, ...]) -> State:
        others = len(nominal.slowdown) - 1
        if not others:
            return nominal
        return nominal.scaled(factors[others:-1], factors[-1], (1.0, *factors[:others]))

    def states(self, nominal: State) -> list[State]:
        """The grid's states: slow-downs vary slowest, then bandwidths, then round-trip times."""
        axes = self._axes(len(nominal.slowdown), len(nominal.up_s_per_byte))
        return [self._state(nominal, factors) for factors in itertools.product(*axes)]

    def cells(self, nominal: State) -> Iterator[list[int]]:
        """The corners of each cell, as indices into `states`."""
        shape = tuple(len(axis) for axis in self._axes(len(nominal.slowdown), len(nominal.up_s_per_byte)))
        for low in itertools.product(*(range(max(n - 1, 1)) for n in shape)):
            steps = itertools.product(*((0, 1) if n > 1 else (0,) for n in shape))
            corners = [tuple(a + b for a, b in zip(low, step, strict=True)) for step in steps]
            yield [int(np.ravel_multi_index(corner, shape)) for corner in corners]

    @staticmethod
    def samples(blocks: int) -> int:
        """How many states between the corners are worth the time."""
        return _SAMPLES_IF_LARGE if blocks > _LARGE else _SAMPLES

    def between(self, nominal: State, rng: random.Random) -> State:
        """A state inside the box, evenly spread over the logarithms of the factors."""
        axes = self._axes(len(nominal.slowdown), len(nominal.up_s_per_byte))
        return self._state(nominal, tuple(min(a) * (max(a) / min(a)) ** rng.random() for a in axes))
