"""Made-up plans with codecs: integers that lose their last digits on the way, and names that say so.

The rules are those of real plans, in a few lines of their own: one encode for a value, where it is made; one decode on
each tier that reads it; and what a loss has reached has a name of its own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tests.runtime.worlds import Graph, make_facts

from flagsplit.flagir.visits import visits
from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.session_machine import SessionFacts
from flagsplit.targets.interface import Array

STEP = 64


@dataclass(frozen=True)
class Item:
    """A node: the names that it reads and the one that it makes; `op` is an operator of the graph, -1 for codecs."""

    kind: str
    tier: int
    reads: tuple[str, ...]
    makes: str
    op: int = -1


@dataclass(frozen=True)
class LossyPlan:
    """A placement, the values that travel coded, and the tiers that a request passes (empty: all)."""

    placement: Sequence[int]
    coded: frozenset[str] = frozenset()
    route: tuple[int, ...] = ()


def items_of(graph: Graph, plan: LossyPlan) -> tuple[list[Item], dict[str, str]]:
    """The nodes of a plan in topological order, and the names of the graph's values in it."""
    items: list[Item] = []
    names, homes, lossy = {"x": "x"}, {"x": 0}, set[str]()
    there: set[str] = set()
    for op, reads in enumerate(graph.reads):
        tier, read = plan.placement[op], []
        for name in reads:
            if homes[name] == tier or name not in plan.coded:
                read.append(names[name])
                continue
            payload, decoded = f"{names[name]}.payload", f"{names[name]}.at_{tier}"
            if payload not in there:
                items.append(Item("encode", homes[name], (names[name],), payload))
            if decoded not in there:
                items.append(Item("decode", tier, (payload,), decoded))
            there |= {payload, decoded}
            lossy.add(decoded)
            read.append(decoded)
        made = f"v{op}"
        if not lossy.isdisjoint(read):
            made += "~" + hashlib.sha256("\0".join((made, *read)).encode()).hexdigest()[:8]
            lossy.add(made)
        items.append(Item("op", tier, tuple(read), made, op))
        names[f"v{op}"], homes[f"v{op}"] = made, tier
    return items, names


class LossyNumbers:
    """Plans with codecs over one graph, and the engine that computes their segments."""

    def __init__(self, graph: Graph, tiers: Sequence[str], plans: Mapping[str, LossyPlan]) -> None:
        self.graph, self.plans = graph, plans
        self._segments: dict[str, tuple[tuple[Item, ...], tuple[str, ...]]] = {}
        steps, answers = {}, {}
        for name, plan in plans.items():
            items, names = items_of(graph, plan)
            answers[name] = {output: names[output] for output in graph.outputs if names[output] != output}
            steps[name] = self._steps(items, {names[output] for output in graph.outputs}, len(tiers))
        facts = make_facts(graph, tiers, {name: plan.placement for name, plan in plans.items()})
        routed = tuple(replace(plan, route=plans[plan.name].route) for plan in facts.pool.plans)
        self.facts: SessionFacts = replace(
            facts, pool=replace(facts.pool, plans=routed), steps=steps, answers={n: a for n, a in answers.items() if a}
        )

    def _steps(self, items: list[Item], outputs: set[str], tiers: int) -> tuple[PlannedStep, ...]:
        maker = {item.makes: at for at, item in enumerate(items)}
        needs = [sorted({maker[name] for name in item.reads if name in maker}) for item in items]
        return tuple(
            self._step(visit.tier, tuple(items[at] for at in visit.items), items, outputs)
            for visit in visits([item.tier for item in items], needs, tiers)
        )

    def _step(self, tier: int, inside: tuple[Item, ...], items: list[Item], outputs: set[str]) -> PlannedStep:
        made = {item.makes for item in inside}
        read = dict.fromkeys(name for item in inside for name in item.reads if name not in made)
        wanted = {name for item in items if item not in inside for name in item.reads} | outputs
        gives = tuple(item.makes for item in inside if item.makes in wanted)
        segment = "+".join(item.makes for item in inside)
        if any(item.kind == "encode" for item in inside):
            segment += "=>" + "+".join(gives)
        if len(segment) > 100:
            segment = hashlib.sha256(segment.encode()).hexdigest()
        assert self._segments.setdefault(segment, (inside, gives))[1] == gives, "equal ids, other results"
        return PlannedStep(tier, segment, tuple(read), gives)

    def _apply(self, item: Item, values: Mapping[str, Array]) -> Array:
        if item.kind == "op":
            named = dict(zip(self.graph.reads[item.op], (values[name] for name in item.reads), strict=True))
            return self.graph.apply(item.op, named)
        (given,) = (values[name] for name in item.reads)
        return given // STEP if item.kind == "encode" else given * STEP + STEP // 2

    def __call__(self, tier: str, segment: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        items, gives = self._segments[segment]
        values = dict(inputs)
        for item in items:
            values[item.makes] = self._apply(item, values)
        return {name: values[name] for name in gives}

    def reference(self, plan: str, x: Array) -> dict[str, Array]:
        """What a plan must answer, computed in one go."""
        items, names = items_of(self.graph, self.plans[plan])
        values = {"x": x}
        for item in items:
            values[item.makes] = self._apply(item, values)
        return {output: values[names[output]] for output in self.graph.outputs}
