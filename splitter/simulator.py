"""One request through a placement in time, serial or with overlap: the messages are the runtime's in both cases.

The lift of `flagsplit.flagir.visits` decides what each pass over a link carries. Serial, one thing is done at a time,
and the makespan is the predicted latency. With overlap, a tier computes as soon as it has the inputs and nothing else
to do, and a message leaves as soon as all that it carries is there and the link is free in its direction; in case of
doubt, what comes first in the serial order goes first. A tier must act on a message (`CostModel.invocation_s`) before
it has what the message carries. This shares no code with `flagsplit.splitter.evaluate`, so that each can check the
other. Timing and the check of a timeline are in `flagsplit.splitter.timeline`.
"""

from collections.abc import Sequence

from flagsplit.flagir.blockgraph import GRAPH_INPUT, BlockValue
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.state import State
from flagsplit.splitter.timeline import REQUEST, Task, Timeline, as_ready, channel, one_by_one


def simulate_request(problem: Problem, placement: Sequence[int], state: State, *, overlap: bool = True) -> Timeline:
    """What tiers and links do for one request, and when.

    Args:
        problem: graph, tiers and costs.
        placement: the tier of each block.
        state: how slow tiers and links are. Who is alive is ignored.
        overlap: whether tiers and links work at the same time; without, the makespan is the predicted latency.
    """
    tasks = _Walk(problem, placement, state).tasks
    return as_ready(tasks) if overlap else one_by_one(tasks)


class _Walk:
    """The tasks of a request in serial order."""

    def __init__(self, problem: Problem, placement: Sequence[int], state: State) -> None:
        self._problem, self._placement, self._state = problem, placement, state
        self.tasks: list[Task] = []
        self._at: list[dict[str, int]] = [{} for _ in problem.tiers]  # value to the task that brings it there
        self._came = [0] * len(problem.tiers)  # the task by which a tier last heard of the request
        self._tier = 0
        self._act(REQUEST, ())
        self._at[0] = {value.name: 0 for value in problem.graph.inputs}
        for tier, blocks in self._stops():
            self._go(tier)
            self._run(blocks)
        self._go(0)

    def _stops(self) -> list[tuple[int, list[int]]]:
        """The tiers where something runs, and what, in the order of the lift."""
        makers = [set[int]() for _ in self._placement]
        for value in self._problem.graph.values:
            for block in value.consumers if value.producer != GRAPH_INPUT else ():
                makers[block].add(value.producer)
        todo = dict(enumerate(self._placement))
        stops, floor, step = [], 0, 1
        while todo:
            ran = []
            for block in [block for block, tier in todo.items() if tier == floor]:
                if not makers[block] & todo.keys():
                    del todo[block]
                    ran.append(block)
            if ran:
                stops.append((floor, ran))
            if not any(tier > floor if step > 0 else tier < floor for tier in todo.values()):
                step = -step
            floor += step
        return stops

    def _go(self, tier: int) -> None:
        """Pass the request on to a tier, one message for each link on the way."""
        while self._tier != tier:
            near, step = self._tier, 1 if tier > self._tier else -1
            link, far = min(near, near + step), near + step
            carried = [
                value
                for value in self._problem.graph.values
                if value.name in self._at[near] and value.name not in self._at[far] and self._beyond(value, near, step)
            ]
            per_byte = (self._state.up_s_per_byte if step > 0 else self._state.down_s_per_byte)[link]
            latency = (self._state.up_s_per_message if step > 0 else self._state.down_s_per_message)[link]
            names = self._problem.tier_names
            what = f"message {sum('->' in task.resource for task in self.tasks)}"
            message = Task(
                resource=channel(names[near], names[far]),
                what=what,
                seconds=sum(value.size_bytes for value in carried) * per_byte,
                latency_s=latency,
                # One that carries nothing only says that the request is here.
                needs=tuple({self._at[near][value.name] for value in carried} or {self._came[near]}),
                carries=tuple(value.name for value in carried),
            )
            self.tasks.append(message)
            self._tier = far
            self._act(f"take up {what}", (len(self.tasks) - 1,))
            self._at[far] |= dict.fromkeys(message.carries, len(self.tasks) - 1)

    def _beyond(self, value: BlockValue, tier: int, step: int) -> bool:
        """Whether a value is needed further on in a direction."""
        needed = [self._placement[block] for block in value.consumers] + ([0] if value.is_output else [])
        return any((other - tier) * step > 0 for other in needed)

    def _act(self, what: str, needs: tuple[int, ...]) -> None:
        """Let the tier take up what came."""
        seconds = float(self._problem.costs.invocation_s[self._tier]) * self._state.slowdown[self._tier]
        self._came[self._tier] = len(self.tasks)
        self.tasks.append(Task(self._problem.tier_names[self._tier], what, seconds, 0.0, needs))

    def _run(self, blocks: Sequence[int]) -> None:
        """Run blocks where the request is."""
        here, values = self._at[self._tier], self._problem.graph.values
        for block in blocks:
            reads = {here[value.name] for value in values if block in value.consumers} or {self._came[self._tier]}
            seconds = float(self._problem.costs.seconds[block, self._tier]) * self._state.slowdown[self._tier]
            here |= {value.name: len(self.tasks) for value in values if value.producer == block}
            name = self._problem.graph.blocks[block].name
            self.tasks.append(Task(self._problem.tier_names[self._tier], name, seconds, 0.0, tuple(reads)))
