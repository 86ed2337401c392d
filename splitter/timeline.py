"""When each tier and each link does what during one request: tasks, three ways to time them, and a check of the result.

A task occupies one resource (a tier, or one direction of a link) and starts after what it needs; a message is also on
its way for a while after it left, which occupies nothing. Where tasks come from is in `flagsplit.splitter.simulator`
(the runtime's messages) and `flagsplit.splitter.makespan` (one message per tensor).
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockValue
from flagsplit.splitter.problem import Problem

REQUEST = "request"
"""What the first tier is doing when it takes up a request."""

_SAME = 1e-9  # relative to the makespan: rounding of sums


@dataclass(frozen=True)
class Task:
    """Something to be done for a request.

    Attributes:
        resource: what it occupies: a tier's name, or `channel(from, to)`.
        what: a block's name, `REQUEST`, or what a message is called.
        seconds: how long it occupies the resource.
        latency_s: how long after that its result is there.
        needs: positions of the tasks whose results it needs, all before its own.
        carries: names of the values that a message carries.
    """

    resource: str
    what: str
    seconds: float
    latency_s: float
    needs: tuple[int, ...]
    carries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A task in time: it occupies `resource` from `start_s` to `end_s`, and its result is there at `arrives_s`.

    `position` is the task's among all of the request.
    """

    position: int
    resource: str
    what: str
    start_s: float
    end_s: float
    arrives_s: float
    carries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """One request.

    Attributes:
        intervals: by start, at time 0 the request comes in.
        makespan_s: when the last result is there.
    """

    intervals: tuple[Interval, ...]
    makespan_s: float


def channel(near: str, far: str) -> str:
    """The resource that a message from one tier to its neighbor occupies; the way back is another one."""
    return f"{near}->{far}"


def one_by_one(tasks: Sequence[Task]) -> Timeline:
    """Start a task when the result of the one before it is there: serial execution."""
    now, done = 0.0, []
    for i, task in enumerate(tasks):
        done.append(_placed(i, task, now))
        now = done[-1].arrives_s
    return _timeline(done)


def in_order(tasks: Sequence[Task], order: Sequence[int]) -> Timeline:
    """Start each task as early as its needs allow, where each resource takes its tasks in the given order.

    Args:
        tasks: what to do.
        order: positions of all tasks, each after those that it needs.
    """
    free: dict[str, float] = defaultdict(float)
    done: dict[int, Interval] = {}
    for i in order:
        ready = max((done[need].arrives_s for need in tasks[i].needs), default=0.0)
        done[i] = _placed(i, tasks[i], max(ready, free[tasks[i].resource]))
        free[tasks[i].resource] = done[i].end_s
    return _timeline(list(done.values()))


def as_ready(tasks: Sequence[Task]) -> Timeline:
    """Let no resource wait while a task is ready for it; of several, it takes the first in the given order.

    Whenever nothing is under way, the first task left could start. So something always is, and this never takes longer
    than `one_by_one`.
    """
    waiting = [len(task.needs) for task in tasks]
    readers: list[list[int]] = [[] for _ in tasks]
    for i, task in enumerate(tasks):
        for need in task.needs:
            readers[need].append(i)
    queues: dict[str, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        if not waiting[i]:
            heapq.heappush(queues[task.resource], i)
    busy: set[str] = set()
    done: list[Interval] = []
    events: list[tuple[float, int, bool]] = []  # when, task, whether it arrived or only left its resource
    now = 0.0
    while True:
        for resource in [name for name, queue in queues.items() if queue and name not in busy]:
            i = heapq.heappop(queues[resource])
            busy.add(resource)
            done.append(_placed(i, tasks[i], now))
            heapq.heappush(events, (done[-1].end_s, i, False))
            heapq.heappush(events, (done[-1].arrives_s, i, True))
        if not events:
            return _timeline(done)
        now = events[0][0]
        while events and events[0][0] == now:
            _, i, arrived = heapq.heappop(events)
            if not arrived:
                busy.discard(tasks[i].resource)
                continue
            for reader in readers[i]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(queues[tasks[reader].resource], reader)


def _placed(position: int, task: Task, start: float) -> Interval:
    end = start + task.seconds
    return Interval(position, task.resource, task.what, start, end, end + task.latency_s, task.carries)


def _timeline(done: list[Interval]) -> Timeline:
    ordered = tuple(sorted(done, key=lambda each: (each.start_s, each.end_s)))
    return Timeline(ordered, max((each.arrives_s for each in ordered), default=0.0))


def faults(problem: Problem, placement: Sequence[int], timeline: Timeline) -> list[str]:
    """What is impossible about a timeline, one line each; nothing if it is sound.

    No resource does two things at once, every block runs once and on its tier, blocks start and messages leave when all
    that they need has arrived, and all outputs are at the first tier in the end.
    """
    slack = _SAME * timeline.makespan_s
    found = [
        f"{one.resource} does {one.what} and {two.what} at once"
        for one, two in _neighbors(timeline)
        if two.start_s < one.end_s - slack
    ]
    values = {value.name: value for value in problem.graph.values}
    for block, tier in zip(problem.graph.blocks, placement, strict=True):
        runs = [each for each in timeline.intervals if each.what == block.name and "->" not in each.resource]
        if [each.resource for each in runs] != [problem.tier_names[tier]]:
            found.append(f"{block.name} runs on {[each.resource for each in runs]}, not once on tier {tier}")
            continue
        reads = [value for value in values.values() if block.index in value.consumers]
        found += _too_early(problem, placement, timeline, reads, tier, runs[0].start_s + slack, block.name)
    for each in timeline.intervals:
        if each.carries:
            near = problem.tier_names.index(each.resource.split("->")[0])
            carried = [values[name] for name in each.carries]
            found += _too_early(problem, placement, timeline, carried, near, each.start_s + slack, each.what)
    end = timeline.makespan_s + slack
    return found + _too_early(problem, placement, timeline, problem.graph.outputs, 0, end, "the answer")


def _neighbors(timeline: Timeline) -> Iterator[tuple[Interval, Interval]]:
    rows: dict[str, list[Interval]] = defaultdict(list)
    for each in timeline.intervals:
        rows[each.resource].append(each)
    for row in rows.values():
        yield from pairwise(row)


def _too_early(
    problem: Problem,
    placement: Sequence[int],
    timeline: Timeline,
    needed: Sequence[BlockValue],
    tier: int,
    when: float,
    who: str,
) -> list[str]:
    """Which of the values are not on a tier at a time."""
    name = problem.tier_names[tier]
    into = [each for each in timeline.intervals if each.resource.endswith(f"->{name}") and each.arrives_s <= when]
    here = {value for each in into for value in each.carries}
    ended = {each.what for each in timeline.intervals if each.resource == name and each.end_s <= when}
    return [
        f"{who} lacks {value.name} on {name}"
        for value in needed
        if value.name not in here
        and not (value.producer == GRAPH_INPUT and tier == 0)
        and not (
            value.producer != GRAPH_INPUT
            and placement[value.producer] == tier
            and problem.graph.blocks[value.producer].name in ended
        )
    ]
