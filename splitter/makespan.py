"""The least makespan of one request when parallel branches of the graph run at the same time on different tiers.

In the model: every block runs once, on a tier that may run it; a tier runs one block at a time; each tensor that is
needed on another tier crosses each link on the way once, on its own, as soon as it is made or has come over the link
before; a link carries one tensor at a time in each direction, for size over bandwidth; the latency of a message and the
receiver's invocation delay the tensor and occupy nothing; the request starts with an invocation of the first tier and
ends when all blocks have run and all outputs are there; weights fit the memory of their tier. Not in the model:
tensors that share a message, invocations as work of a tier, activations in memory, and what the SLA says about energy,
price and latency. So the bound holds for every timeline of `flagsplit.splitter.simulator`, which knows messages; what
the runtime's messages make of a placement is for the simulator to say. The program is in
`flagsplit.splitter.makespan_program`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flagsplit.errors import InternalError, PolicyError
from flagsplit.flagir.blockgraph import GRAPH_INPUT
from flagsplit.splitter.makespan_program import Durations, Found, Program, Step
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import BYTES_PER_MB
from flagsplit.splitter.state import State
from flagsplit.splitter.timeline import REQUEST, Task, Timeline, as_ready, channel, in_order

RESOLUTION = 1e-6
"""How much of the makespan rounding can hide for each task of a path; durations are rounded down to ticks for it."""


@dataclass(frozen=True)
class Makespan:
    """The best placement and schedule found.

    Attributes:
        placement: tier index of each block.
        makespan_s: how long the timeline takes, in exact durations.
        bound_s: proven: no placement and no schedule of the model takes less.
        proven: whether the search ended with a proof; what is between makespan and bound is then rounding, at most
            `RESOLUTION` of the makespan for each task of a path through the timeline.
        seconds: wall time of the search.
        timeline: what happens when.
    """

    placement: tuple[int, ...]
    makespan_s: float
    bound_s: float
    proven: bool
    seconds: float
    timeline: Timeline


def least_makespan(
    problem: Problem, state: State | None = None, seconds: float = 10.0, hint: Sequence[int] | None = None
) -> Makespan:
    """Choose a tier for each block, and an order on each tier and link, for the least makespan.

    Meant for up to about 100 blocks. The same input gives the same answer if the search ends before its time does.

    Args:
        problem: graph, tiers, memory caps, and which block may run where.
        state: how slow tiers and links are and who is alive, nominal by default; dead tiers relay at the same cost.
        seconds: time limit.
        hint: a placement to start from; the answer is never worse if weights fit there.

    Raises:
        PolicyError: the weights do not fit in any way, a block has no tier that is alive, or time ran out before
            any placement was found (never with a hint that fits).
    """
    started = time.perf_counter()
    state = state or problem.nominal
    problem = problem.restricted_to([k for k, alive in enumerate(state.alive) if alive])
    exact = _durations(problem, state)
    best, bound_s = _start(problem, exact, hint), 0.0
    while True:
        scale = best.timeline.makespan_s if best else _longest(exact)
        tick = (scale or 1.0) * RESOLUTION / 4
        found = _search(problem, exact, best, scale, tick, seconds - (time.perf_counter() - started))
        best = min(filter(None, (best, *_timed(problem, exact, tick, found))), key=_length, default=None)
        if best is None:
            raise PolicyError(_nothing(problem, seconds, proven=found.proven))
        bound_s = min(max(bound_s, found.bound * tick), best.timeline.makespan_s)
        fine = best.timeline.makespan_s >= scale / 2
        if fine or not found.proven:
            took = time.perf_counter() - started
            return Makespan(
                best.placement, best.timeline.makespan_s, bound_s, found.proven and fine, took, best.timeline
            )


class _Schedule(NamedTuple):
    placement: tuple[int, ...]
    timeline: Timeline


def _length(schedule: _Schedule) -> float:
    return schedule.timeline.makespan_s


def _search(
    problem: Problem, exact: Durations, best: _Schedule | None, longest: float, tick: float, seconds: float
) -> Found:
    """Run the program from the best that is known, among schedules that are not longer."""
    ticks = exact.ticks(tick)
    program = Program(problem, ticks, int(longest / tick) + 1)
    if best is not None:
        steps = _steps(problem, best.placement)
        rounded = in_order(_tasks(problem, ticks, steps), [each.position for each in best.timeline.intervals])
        program.add_hint(best.placement, {steps[each.position]: round(each.start_s) for each in rounded.intervals})
    found = program.solve(max(seconds, 0.01))
    if best is not None and found.proven and found.placement is None:
        raise InternalError("the makespan program has no room for the schedule that it was given")
    return found


def _durations(problem: Problem, state: State) -> Durations:
    """All durations in seconds; what a tier cannot run takes 0 there, as no placement puts it there."""
    slow = np.array(state.slowdown)
    sizes = problem.values.size_bytes[:, np.newaxis]
    acting = problem.costs.invocation_s * slow
    return Durations(
        request=float(acting[0]),
        blocks=np.where(problem.constraints.allowed, problem.costs.seconds * slow, 0.0),
        up=sizes * np.array(state.up_s_per_byte),
        down=sizes * np.array(state.down_s_per_byte),
        up_delay=np.array(state.up_s_per_message) + acting[1:],
        down_delay=np.array(state.down_s_per_message) + acting[:-1],
    )


def _longest(exact: Durations) -> float:
    """More than any schedule without idle time can take."""
    over_links = (exact.up + exact.up_delay).sum() + (exact.down + exact.down_delay).sum()
    return exact.request + float(exact.blocks.max(axis=1).sum() + over_links)


def _fits(problem: Problem, placement: Sequence[int]) -> bool:
    """Whether a placement is allowed and its weights fit."""
    tiers = np.array(placement)
    held = np.bincount(tiers, problem.weight_bytes, len(problem.tiers))
    allowed = problem.constraints.allowed[np.arange(len(tiers)), tiers]
    return bool(allowed.all() and (held <= problem.memory_bytes * (1 + 1e-9)).all())


def _start(problem: Problem, exact: Durations, hint: Sequence[int] | None) -> _Schedule | None:
    """The best of the hint, single tiers and every block where it is fastest, among those whose weights fit."""
    allowed = problem.constraints.allowed
    known = [(int(k),) * len(allowed) for k in np.flatnonzero(allowed.all(axis=0))]
    known.append(tuple(int(k) for k in np.where(allowed, exact.blocks, np.inf).argmin(axis=1)))
    if hint is not None:
        known.append(tuple(int(k) for k in hint))
    fitting = [placement for placement in known if _fits(problem, placement)]
    schedules = [_Schedule(p, as_ready(_tasks(problem, exact, _steps(problem, p)))) for p in fitting]
    return min(schedules, key=_length, default=None)


def _timed(problem: Problem, exact: Durations, tick: float, found: Found) -> list[_Schedule]:
    """What the program found in exact durations: in its order, and without idle time."""
    if found.placement is None:
        return []
    steps = _steps(problem, found.placement)
    tasks, rounded = _tasks(problem, exact, steps), _tasks(problem, exact.ticks(tick), steps)
    begun = [found.starts.get(step, 0) for step in steps]
    # What takes no tick can start with what does, and then comes first.
    order = sorted(range(len(steps)), key=lambda i: (begun[i], begun[i] + rounded[i].seconds, i))
    return [_Schedule(found.placement, timeline) for timeline in (in_order(tasks, order), as_ready(tasks))]


def _steps(problem: Problem, placement: Sequence[int]) -> list[Step]:
    """What a placement does, each step after those that it needs."""
    made: dict[int, list[Step]] = {block: [] for block in range(GRAPH_INPUT, len(placement))}
    for i, value in enumerate(problem.graph.values):
        home = 0 if value.producer == GRAPH_INPUT else placement[value.producer]
        needed = [placement[block] for block in value.consumers] + ([0] if value.is_output else [])
        made[value.producer] += [Step("up", i, link) for link in range(home, max(needed, default=home))]
        made[value.producer] += [Step("down", i, link) for link in reversed(range(min(needed, default=home), home))]
    steps = [Step("request", 0, 0), *made[GRAPH_INPUT]]
    for block in range(len(placement)):
        steps += [Step("block", block, placement[block]), *made[block]]
    return steps


def _tasks(problem: Problem, durations: Durations, steps: Sequence[Step]) -> list[Task]:
    """The steps with their durations and needs."""
    names, values = problem.tier_names, problem.graph.values
    at = {(i, 0): 0 for i, value in enumerate(values) if value.producer == GRAPH_INPUT}
    tasks = [Task(names[0], REQUEST, float(durations.request), 0.0, ())]
    for position, step in enumerate(steps[1:], 1):
        if step.kind == "block":
            reads = [i for i, value in enumerate(values) if step.item in value.consumers]
            needs = tuple({at[i, step.place] for i in reads} or {0})
            took = float(durations.blocks[step.item, step.place])
            tasks.append(Task(names[step.place], problem.graph.blocks[step.item].name, took, 0.0, needs))
            at |= {(i, step.place): position for i, value in enumerate(values) if value.producer == step.item}
            continue
        up = step.kind == "up"
        near, far = (step.place, step.place + 1) if up else (step.place + 1, step.place)
        took = float((durations.up if up else durations.down)[step.item, step.place])
        delay = float((durations.up_delay if up else durations.down_delay)[step.place])
        name = values[step.item].name
        tasks.append(Task(channel(names[near], names[far]), name, took, delay, (at[step.item, near],), (name,)))
        at[step.item, far] = position
    return tasks


def _nothing(problem: Problem, seconds: float, *, proven: bool) -> str:
    """Why there is no answer."""
    weights = float(problem.weight_bytes.sum()) / BYTES_PER_MB
    caps = ", ".join(
        f"{name} {cap / BYTES_PER_MB:.6g}" for name, cap in zip(problem.tier_names, problem.memory_bytes, strict=True)
    )
    if proven:
        return f"memory_mb: {weights:.6g} MB of weights fit the tiers in no allowed way ({caps}); raise a cap or a pin"
    return f"no placement whose weights fit ({caps} MB) was found in {seconds:g} s: allow more time or give a hint"
