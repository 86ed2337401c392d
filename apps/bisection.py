"""Where a segment goes wrong on a target: the first node that, run there, makes the segment's outputs depart.

A prefix of the segment's nodes is compiled for the target, the rest is run by the reference on what the prefix makes,
and the segment's outputs are compared. With no node on the target they agree, with all they depart, so somewhere
between lies a node that makes the difference; a binary search finds it. Errors need not grow from node to node, but
whichever node is found did turn a right answer into a wrong one. An inner value that is off but without consequence,
such as a mask of -3e38 that becomes an infinity, misleads nobody.

Then the node is run there alone, on the reference's inputs. If the outputs depart again, it is to blame. Else the error
grew over the nodes before it, or it comes only with neighbors, which the target fuses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flagsplit.apps.deviation import Deviation, Tolerance, deviations, worst
from flagsplit.apps.fault import Cause, Fault, Growth, NodeFacts, NodeInput
from flagsplit.apps.part_engines import NodeLine, PartEngine
from flagsplit.errors import BundleError, FlagsplitError, InputError
from flagsplit.targets.interface import Array

_GROWTH_ROWS = 8
_GRADUAL_SHARE = 0.25
"""With this much of the error there before the node, it grew; with less, the node brought it."""

_WIDEST_FUSION = 8
_TOLERANCE_INSIDE = Tolerance("norm", 1e-5)
"""What rounding may change where an engine's fused group is cut, in a search for an error that is larger."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """A segment that departs on a target.

    Attributes:
        line: its nodes.
        given: its inputs by the reference.
        expected: its outputs by the reference.
        allowed: what may differ.
        blocks: name of the block of each node that has one.
    """

    line: NodeLine
    given: Mapping[str, Array]
    expected: Mapping[str, Array]
    allowed: Tolerance
    blocks: Mapping[str, str]


def find_fault(
    suspect: Suspect, reference: PartEngine, target: PartEngine, told: Callable[[str], None] = lambda _: None
) -> Fault:
    """Find where a segment goes wrong.

    Args:
        suspect: the segment.
        reference: runs what counts.
        target: runs what is suspected.
        told: called with what is being done.

    Returns:
        What was found. Its cause is `STORED` if all nodes run by `target` do not depart: then what departed is not what
        the target makes.
    """
    return _Search(suspect, reference, target, told).run()


def find_break(
    suspect: Suspect, reference: PartEngine, target: PartEngine, told: Callable[[str], None] = lambda _: None
) -> Fault:
    """Find with which node a segment can no longer be loaded or run; the arguments are those of `find_fault`.

    Returns:
        What was found. Its cause is `STORED` if `target` loads and runs all nodes, `UNKNOWN` if it cannot compile them.
    """
    return _Search(suspect, reference, target, told).run_broken()


class _Search:
    def __init__(
        self, suspect: Suspect, reference: PartEngine, target: PartEngine, told: Callable[[str], None]
    ) -> None:
        self._suspect, self._line = suspect, suspect.line
        self._reference, self._target, self._told = reference, target, told
        self._allowed = suspect.allowed
        self._seen: dict[tuple[int, int], dict[str, Array] | FlagsplitError] = {}
        self._right: dict[int, dict[str, Array]] = {0: dict(suspect.given)}

    def run(self) -> Fault:
        count = len(self._line)
        whole = self._effect(0, count)
        if isinstance(whole, FlagsplitError):
            return Fault(Cause.UNKNOWN, note=f"it cannot be compiled again: {whole}")
        if not whole.departs:
            return Fault(Cause.STORED, effect=whole)
        low, high = self._narrowed(0, count, self._places())
        if self._allowed.measure == "exact" and high - low > 1:
            low, high = self._inside_fused(low, high)
        if high - low > 1:
            return self._unlocated(low, high)
        return self._judged(low)

    def run_broken(self) -> Fault:
        whole = self._mixed(0, len(self._line))
        if not isinstance(whole, FlagsplitError):
            return Fault(Cause.STORED)
        if not _breaks(whole):
            return Fault(Cause.UNKNOWN, note=f"it cannot be compiled again: {whole}")
        low, high = self._narrowed(0, len(self._line), range(len(self._line) + 1), self._broken)
        nodes = tuple(self._facts(at) for at in range(low, high))
        alone = high - low == 1 and _breaks(self._mixed(low, high))
        return Fault(Cause.NODE if alone else Cause.TOGETHER, nodes, note=str(self._mixed(0, high)))

    def _places(self) -> list[int]:
        """Where the line may be cut: anywhere, or for bit equality nowhere inside a block, which engines fuse."""
        count = len(self._line)
        if self._allowed.measure != "exact":
            return list(range(count + 1))
        names = [self._suspect.blocks.get(node.name or "", node.name) for node in self._line.nodes]
        last = {name: at for at, name in enumerate(names)}
        places, reach = [0], 0
        for at, name in enumerate(names):
            reach = max(reach, last[name])
            if reach == at:
                places.append(at + 1)
        return places

    def _inside_fused(self, low: int, high: int) -> tuple[int, int]:
        """Go on inside a fused group, if what is wrong is larger than the rounding that cutting it changes."""
        self._allowed = _TOLERANCE_INSIDE
        ends = self._effect(0, low), self._effect(0, high)
        if all(isinstance(end, Deviation) for end in ends) and _departs(ends[1]) and not _departs(ends[0]):
            return self._narrowed(low, high, range(low, high + 1))
        self._allowed = self._suspect.allowed
        return low, high

    def _narrowed(
        self, low: int, high: int, places: Sequence[int], wrong: Callable[[int], bool | None] | None = None
    ) -> tuple[int, int]:
        """The nearest two places between which it goes wrong: by default, the outputs begin to depart.

        Args:
            low, high: places at which it is right and wrong.
            places: where the line may be cut.
            wrong: whether it is wrong with the nodes up to a place on the target; None if it cannot be cut there.
        """
        wrong = wrong or self._departed
        inner = [place for place in places if low < place < high]
        while inner:
            middle = len(inner) // 2
            self._told(f"nodes to {self._line.nodes[inner[middle] - 1].name}")
            verdict = wrong(inner[middle])
            if verdict is None:
                inner.pop(middle)
            elif verdict:
                high, inner = inner[middle], inner[:middle]
            else:
                low, inner = inner[middle], inner[middle + 1 :]
        return low, high

    def _departed(self, stop: int) -> bool | None:
        effect = self._effect(0, stop)
        return None if isinstance(effect, FlagsplitError) else effect.departs

    def _broken(self, stop: int) -> bool | None:
        made = self._mixed(0, stop)
        return _breaks(made) if not isinstance(made, FlagsplitError) or _breaks(made) else None

    def _judged(self, at: int) -> Fault:
        """What to say of a node that makes the outputs depart when it joins those before it."""
        node = self._facts(at)
        after = self._effect(0, at + 1)
        alone = self._effect(at, at + 1)
        if isinstance(alone, FlagsplitError):
            output = self._own_output(0, at)
            return Fault(
                Cause.NODE, (node,), output, _figures(after), note=f"by itself the node cannot be run: {alone}"
            )
        if alone.departs:
            return Fault(Cause.NODE, (node,), self._own_output(at, at), alone)
        before = self._effect(0, at)
        if isinstance(before, Deviation) and isinstance(after, Deviation):
            gradual = before.norm_relative >= _GRADUAL_SHARE * after.norm_relative
            first = None if gradual else self._fusion(at)
            if first is not None:
                names = tuple(self._facts(each) for each in range(first, at + 1))
                return Fault(Cause.TOGETHER, names, self._own_output(first, at), after)
        return Fault(Cause.GRADUAL, (node,), self._own_output(0, at), _figures(after), self._growth(at))

    def _fusion(self, at: int) -> int | None:
        """The first of the few nodes that depart only together; None if they are not few."""
        for first in range(at - 1, max(at - _WIDEST_FUSION, -1), -1):
            if _departs(self._effect(first, at + 1)):
                return first
        return None

    def _growth(self, last: int) -> tuple[Growth, ...]:
        """How the error comes to be, at a few nodes with even distances and at the one with which it is too much."""
        length = len(self._line)
        count = min(_GROWTH_ROWS, length)
        places = sorted({last, *(round((at + 1) * length / count) - 1 for at in range(count))})
        rows = []
        for at in places:
            self._told(f"growth to {self._line.nodes[at].name}")
            effect, output = self._effect(0, at + 1), self._own_output(0, at)
            if isinstance(effect, Deviation):
                rows.append(Growth(self._facts(at), output, effect))
        return tuple(rows)

    def _unlocated(self, low: int, high: int) -> Fault:
        """Several nodes between which the line cannot be cut."""
        seen = [self._seen.get((0, at)) for at in range(low + 1, high)]
        why = next((each for each in seen if isinstance(each, FlagsplitError)), None)
        note = f"they cannot be told apart: {why}" if why else "the engine fuses them, so they are not told apart"
        nodes = tuple(self._facts(at) for at in range(low, high))
        return Fault(Cause.TOGETHER, nodes, self._own_output(low, high - 1), _figures(self._effect(0, high)), note=note)

    def _effect(self, start: int, stop: int) -> Deviation | FlagsplitError:
        """How far the segment's outputs are off with these nodes on the target; or why they cannot be run there."""
        made = self._mixed(start, stop)
        if isinstance(made, FlagsplitError):
            return made
        values, rest = made, self._line.part(stop, len(self._line))
        try:
            values = values | self._reference.run(rest, values)
        except InputError as error:
            return Deviation("", "", (), math.inf, math.inf, 0.0, 0, departs=True, note=f"no use to the rest: {error}")
        except FlagsplitError as error:
            return error
        found = deviations(self._suspect.expected, values, self._allowed)
        return worst(found) or Deviation("", "", (), 0.0, 0.0, 1.0, 0, departs=False)

    def _mixed(self, start: int, stop: int) -> dict[str, Array] | FlagsplitError:
        """All values up to `stop`, those before `start` by the reference; or why the target cannot make them."""
        if (start, stop) not in self._seen:
            try:
                values = self._known(start)
                self._seen[start, stop] = values | self._target.run(self._line.part(start, stop), values)
            except FlagsplitError as error:
                self._seen[start, stop] = error
        return self._seen[start, stop]

    def _known(self, stop: int) -> dict[str, Array]:
        """The inputs, and what the reference makes before `stop` for others."""
        if stop not in self._right:
            given = self._suspect.given
            self._right[stop] = {**given, **self._reference.run(self._line.part(0, stop), given)}
        return self._right[stop]

    def _own_output(self, start: int, at: int) -> Deviation | None:
        """How far the node's own outputs are off, with the nodes from `start` to it on the target."""
        came, wanted = self._mixed(start, at + 1), self._known(at + 1)
        names = [name for name in self._line.made_by(at) if name in wanted]
        if isinstance(came, FlagsplitError):
            return None
        return worst(deviations({name: wanted[name] for name in names}, came, self._allowed))

    def _facts(self, at: int) -> NodeFacts:
        node = self._line.nodes[at]
        values = self._known(at)
        reads = [value for value in node.inputs if value is not None]
        return NodeFacts(
            node.name or "",
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            self._suspect.blocks.get(node.name or "", ""),
            tuple(NodeInput.of(value, values.get(value.name or "")) for value in reads),
        )


def _breaks(made: object) -> bool:
    """Whether something was compiled that does not load or run."""
    return isinstance(made, BundleError | InputError)


def _departs(effect: Deviation | FlagsplitError) -> bool:
    return isinstance(effect, Deviation) and effect.departs


def _figures(effect: Deviation | FlagsplitError) -> Deviation | None:
    return effect if isinstance(effect, Deviation) else None
