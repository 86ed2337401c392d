"""The states of the world that a pool is built for: a box of factors on nominal links and tiers, and its corners."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flagsplit.splitter.state import State

_LARGE = 800
_FEW_LINKS, _MANY_LINKS = 3, 5
_SAMPLES, _SAMPLES_IF_LARGE = 48, 12


@dataclass(frozen=True)
class Grid:
    """Factors on the nominal links and tiers; the pool is built, and certified, for the box that they span.

    Attributes:
        bandwidth: of each link.
        rtt: of all round trips together.
        slowdown: of each tier beyond the first. The first is taken at its own speed: what counts is the relation.
        tiers_alike: whether all tiers beyond the first are slower by the same factor.
        links_alike: whether all links are faster by the same factor.
    """

    bandwidth: tuple[float, ...]
    rtt: tuple[float, ...]
    slowdown: tuple[float, ...] = (1.0, 4.0)
    tiers_alike: bool = False
    links_alike: bool = False

    @classmethod
    def for_links(cls, links: int, blocks: int = 0) -> "Grid":
        """A grid of at most 200 states for any number of links, and below 40 for large graphs."""
        if blocks > _LARGE and links <= 2:
            return cls((1 / 16, 1.0, 16.0), (1.0,))
        if links <= 2:
            return cls((1 / 16, 1 / 4, 1.0, 4.0, 16.0), (0.25, 4.0))
        return cls((1 / 8, 8.0), (0.25, 4.0), tiers_alike=links > _FEW_LINKS, links_alike=links > _MANY_LINKS)

    def _axes(self, tiers: int, links: int) -> list[tuple[float, ...]]:
        if tiers == 1:
            return [(1.0,)]
        slow, fast = 1 if self.tiers_alike else tiers - 1, 1 if self.links_alike else links
        return [*([self.slowdown] * slow), *([self.bandwidth] * fast), self.rtt]

    def _state(self, nominal: State, factors: tuple[float, ...]) -> State:
        others = len(nominal.slowdown) - 1
        if not others:
            return nominal
        links = len(nominal.up_s_per_byte)
        count = 1 if self.tiers_alike else others
        slow, fast, rtt = factors[:count], factors[count:-1], factors[-1]
        slow, fast = slow * others if self.tiers_alike else slow, fast * links if self.links_alike else fast
        return nominal.scaled(fast, rtt, (1.0, *slow))

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
