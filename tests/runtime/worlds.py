"""Made-up bundles for the machines: random graphs of numpy functions, cut by the same rule as real ones."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flagsplit.errors import InputError
from flagsplit.flagir.visits import visits
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.session_machine import SessionFacts
from flagsplit.splitter.plan import Features, Plan, Predicted
from flagsplit.splitter.pool import Pool, PoolCertificate
from flagsplit.splitter.state import State
from flagsplit.targets.interface import Array

_CERTIFICATE = PoolCertificate(False, 0, 0, None, (1.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True)
class Graph:
    """Operators in topological order: operator i reads `reads[i]` and makes `v{i}`. The input is `x`."""

    reads: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]

    def apply(self, op: int, values: Mapping[str, Array]) -> Array:
        """Exact integer arithmetic, different for every operator."""
        total = np.full_like(values[self.reads[op][0]], op + 1)
        for place, name in enumerate(self.reads[op]):
            total = (total * 31 + values[name] * (2 * place + 3)) % 1_000_003  # type: ignore[operator]
        return np.roll(total, op + 1)

    def answer(self, x: Array) -> dict[str, Array]:
        """What a request for `x` must give, computed in one go."""
        values = {"x": x}
        for op in range(len(self.reads)):
            values[f"v{op}"] = self.apply(op, values)
        return {name: values[name] for name in self.outputs}

    def run(self, segment: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a segment, whose id lists its operators; only what it declares goes in and out."""
        ops = [int(part) for part in segment.split(".")]
        step = self.step(0, ops)
        assert set(inputs) == set(step.inputs)
        values = dict(inputs)
        for op in ops:
            values[f"v{op}"] = self.apply(op, values)
        return {name: values[name] for name in step.outputs}

    def step(self, tier: int, ops: Sequence[int]) -> PlannedStep:
        made = [f"v{op}" for op in ops]
        read = dict.fromkeys(name for op in ops for name in self.reads[op])
        elsewhere = {name for op, names in enumerate(self.reads) if op not in ops for name in names}
        return PlannedStep(
            tier,
            ".".join(map(str, ops)),
            tuple(name for name in read if name not in made),
            tuple(name for name in made if name in elsewhere or name in self.outputs),
        )

    def steps(self, placement: Sequence[int], tiers: int) -> tuple[PlannedStep, ...]:
        needed = [sorted({int(name[1:]) for name in names if name != "x"}) for names in self.reads]
        return tuple(self.step(visit.tier, visit.items) for visit in visits(placement, needed, tiers))


def random_graph(rng: random.Random, ops: int) -> Graph:
    """Any small graph: residuals, dead ends, several outputs, perhaps the input among them."""
    values, reads = ["x"], []
    for op in range(ops):
        recent = values[-3:]
        reads.append(
            tuple(rng.sample(values if rng.random() < 0.3 else recent, min(len(recent), rng.choice([1, 1, 2]))))
        )
        values.append(f"v{op}")
    outputs = {values[-1], *rng.sample(values, rng.choice([0, 0, 1]))}
    return Graph(tuple(reads), tuple(sorted(outputs)))


def make_facts(graph: Graph, tiers: Sequence[str], placements: Mapping[str, Sequence[int]]) -> SessionFacts:
    """Facts whose pool prefers plans in the order given."""
    count = len(tiers)
    zeros = (0.0,) * count
    features = Features(zeros, zeros[1:], zeros[1:], zeros[1:], zeros[1:], zeros, 0.0, zeros)
    plans = tuple(
        Plan(name, tuple(tiers), tuple(placement), (), features, Predicted(0.0, 0.0, 0.0, 0.0))
        for name, placement in placements.items()
    )
    pool = Pool(plans, 1.0, tuple(float(i) for i in range(len(plans))), None, {}, _CERTIFICATE)
    links = (1e-6,) * (count - 1)
    return SessionFacts(
        bundle="d" * 64,
        tiers=tuple(tiers),
        pool=pool,
        steps={name: graph.steps(placement, count) for name, placement in placements.items()},
        nominal=State((1.0,) * count, links, links, links, links, (True,) * count),
        inputs=("x",),
        outputs=graph.outputs,
    )


class Numbers:
    """Computes segments of a graph; the tiers in `broken` fail at it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.broken: set[str] = set()
        self.runs: list[tuple[str, str]] = []

    def __call__(self, tier: str, segment: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.runs.append((tier, segment))
        if tier in self.broken:
            raise InputError(f"{tier} cannot divide by zero")
        return self.graph.run(segment, inputs)


def same(came: Mapping[str, Array], wanted: Mapping[str, Array]) -> bool:
    """Whether two answers are equal bit for bit."""
    return came.keys() == wanted.keys() and all(
        came[name].dtype == array.dtype and np.array_equal(came[name], array) for name, array in wanted.items()
    )
