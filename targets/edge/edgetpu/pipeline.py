"""A program divided among several Edge TPUs: parts that run in turn, of about equal modelled time.

Each part's parameters lie in the SRAM of its own chip, so that less streams, and while one computes on a request the
others do on the ones after it. The slowest part bounds the throughput: the cut points with the least of that are found
exactly, by dynamic programming over prefixes.
"""

from collections.abc import Sequence

from flagsplit.targets.edge.edgetpu.facts import INVOCATION_S, LINK_BYTES_PER_S, SRAM_BYTES
from flagsplit.targets.edge.edgetpu.mapping import bytes_of, seconds_of
from flagsplit.targets.tflite.program import Operator, Program, Tensor


class Costs:
    """Modelled seconds of every run of operators of a program as one part.

    Args:
        program: to be divided.
    """

    def __init__(self, program: Program) -> None:
        self.operators = list(program.operators)
        self._last = {each: at for at, operator in enumerate(self.operators) for each in operator.inputs if each}
        self._last.update(dict.fromkeys(program.outputs, len(self.operators)))

    def from_first(self, first: int) -> list[float]:
        """The seconds of the parts that begin at `first`, by where they end, which is one beyond the last."""
        compute, parameters, incoming = 0.0, 0, 0
        made: set[Tensor] = set()
        seen: set[Tensor] = set()
        found = []
        for end in range(first, len(self.operators)):
            operator = self.operators[end]
            compute += seconds_of(operator)
            for each in operator.inputs:
                if each is None or each in made or each in seen:
                    continue
                seen.add(each)
                if each.data is not None:
                    parameters += each.data.nbytes
                else:
                    incoming += bytes_of(each)
            made.update(operator.outputs)
            outgoing = sum(bytes_of(each) for each in made if self._last.get(each, -1) > end)
            moved = incoming + outgoing + max(parameters - SRAM_BYTES, 0)
            found.append(INVOCATION_S + compute + moved / LINK_BYTES_PER_S)
        return found


def balanced(costs: Sequence[Sequence[float]], parts: int) -> list[int]:
    """Where parts end, so that the slowest is as quick as can be.

    Args:
        costs: `costs[first][n]` is the time of the part of operators from `first` to `first + n`.
        parts: at most how many; fewer if more do not help.

    Returns:
        The ends, each one beyond the last operator of its part.
    """
    count = len(costs)
    best = [float("inf")] * count + [0.0]
    cuts: list[list[int]] = [[] for _ in range(count + 1)]
    for _ in range(parts):
        new, ends = list(best), [list(each) for each in cuts]
        for first in range(count):
            for at, cost in enumerate(costs[first]):
                end = first + at + 1
                slowest = max(cost, best[end])
                if slowest < new[first]:
                    new[first], ends[first] = slowest, [end, *cuts[end]]
        best, cuts = new, ends
    return cuts[0]


def divided(program: Program, parts: int) -> list[Program]:
    """A program as parts for several chips, in the order in which they run; each gives what later ones read."""
    costs = Costs(program)
    ends = balanced([costs.from_first(first) for first in range(len(costs.operators))], parts)
    return [
        _part(program, costs.operators[first:end], costs.operators[end:])
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def _part(program: Program, operators: list[Operator], later: Sequence[Operator]) -> Program:
    made = {each: None for operator in operators for each in operator.outputs}
    read = {each: None for operator in operators for each in operator.inputs if each is not None and each.data is None}
    wanted = {each for operator in later for each in operator.inputs if each is not None} | set(program.outputs)
    return Program([each for each in read if each not in made], [each for each in made if each in wanted], operators)
