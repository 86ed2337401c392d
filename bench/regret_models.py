"""A model built for the emulated tiers: measured costs, the pool, and beside it the plans that others would have made.

The baselines are the whole model on one tier, the best cut of the blocks' order between phone and cloud (Neurosurgeon),
and the best cut of the graph between those two (DADS), each for the network that it is measured in; and everything in
the cloud with the input in half precision, which changes the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from block_times import Profiled
from emulated import NETWORKS, NOMINAL, SLOWDOWNS, TIERS, Overheads

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.zoo import pull
from flagsplit.flagir import BlockGraph
from flagsplit.flagir.blockgraph import GRAPH_INPUT
from flagsplit.splitter.costs import CostModel
from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.state import State

_PROFILE_ROUNDS = 15
_BASELINE = "baseline-"

LOSSY = "all-cloud, fp16 input"
"""The baseline that changes the answer: it is measured, and is not among those that the choice is compared with."""

Placement = tuple[int, ...]


def _with_fp16_input(problem: Problem) -> Plan:
    """Everything in the cloud, the input sent in half precision."""
    lossy = problem.with_sla(parse_sla({"accuracy": {"every_cut": {"codecs": ["fp16"]}}}))
    codecs = np.zeros((2, len(problem.graph.values)), dtype=np.int64)
    codecs[0, [value.producer == GRAPH_INPUT for value in problem.graph.values]] = lossy.codecs.index("fp16")
    return make_plan(lossy, (len(problem.tiers) - 1,) * len(problem.graph.blocks), LOSSY, codecs=codecs)


def baselines_of(problem: Problem, states: Mapping[str, State]) -> dict[str, dict[str, Placement]]:
    """The usual plans for each network: all on one tier, the best cut of a chain, the best cut between two tiers."""
    blocks, last = len(problem.graph.blocks), len(TIERS) - 1
    chains = np.array([[0] * at + [last] * (blocks - at) for at in range(blocks + 1)])
    phi = Usage(problem, chains).phi
    ends = problem.restricted_to((0, last))
    single = {f"all-{tier}": (k,) * blocks for k, tier in enumerate(TIERS)}
    return {
        name: {
            **single,
            "chain split (Neurosurgeon)": tuple(chains[int((phi @ state.vector()).argmin())].tolist()),
            "two-tier min-cut (DADS)": solve(ends, state).placement,
        }
        for name, state in states.items()
    }


class Model:
    """A model's bundle for the emulated tiers, with the baselines in it."""

    def __init__(self, name: str, shape: tuple[int, ...], overheads: Overheads, networks: Sequence[str], folder: Path):
        self.name = name
        self._networks = networks
        self._overheads = overheads
        (folder / "profile").mkdir(parents=True)
        self.profiled = Profiled(pull(name), shape, folder / "profile")
        self.inputs = self.profiled.inputs
        self._seconds = self.profiled.seconds(_PROFILE_ROUNDS)
        self._baselines: dict[str, dict[str, Placement]] = {}
        (graph_input,) = self.inputs
        options = BuildOptions(shapes={graph_input: shape}, costs=self._costs, extra_plans=self._extra)
        links = overheads.links(NETWORKS[NOMINAL])
        build(pull(name), TIERS, folder / "x.flagsplit", links=links, options=options)
        self.bundle = flagsplit.open(folder / "x.flagsplit", cache=folder / "cache")

    def _costs(self, graph: BlockGraph, costs: CostModel) -> CostModel:
        slowdowns = [SLOWDOWNS[tier] for tier in TIERS]
        seconds = np.outer([self._seconds[block.name] for block in graph.blocks], slowdowns)
        return replace(costs, seconds=seconds, invocation_s=np.full(len(TIERS), self._overheads.message_s))

    def _extra(self, problem: Problem) -> dict[str, Placement | Plan]:
        self._baselines = baselines_of(
            problem, {name: self._overheads.state(NETWORKS[name]) for name in self._networks}
        )
        placements = {placement for each in self._baselines.values() for placement in each.values()}
        extra: dict[str, Placement | Plan] = {
            f"{_BASELINE}{at}": placement for at, placement in enumerate(sorted(placements))
        }
        return {**extra, LOSSY: _with_fp16_input(problem)}

    def plans_in(self, network: str) -> dict[str, None]:
        """Names of all plans to measure in a network."""
        return dict.fromkeys([*(plan.name for plan in self.offered.plans), *self.baselines(network).values(), LOSSY])

    def state(self, network: str, whole_s: float) -> State:
        """A network while one run of the whole graph takes so long on this host."""
        return self._overheads.state(NETWORKS[network], whole_s / sum(self._seconds.values()))

    @property
    def offered(self) -> Pool:
        """The plans that the build found by itself, from which is chosen."""
        pool = self.bundle.plans.pool
        own = [at for at, plan in enumerate(pool.plans) if not plan.name.startswith((_BASELINE, LOSSY))]
        return replace(pool, plans=tuple(pool.plans[at] for at in own), bias=tuple(pool.bias[at] for at in own))

    def baselines(self, network: str) -> dict[str, str]:
        """The name in the pool by that of the baseline."""
        name_of = {plan.placement: plan.name for plan in self.bundle.plans.pool.plans if plan.name != LOSSY}
        return {what: name_of[placement] for what, placement in self._baselines[network].items()}
