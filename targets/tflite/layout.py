"""Chooses for each tensor whether channels come second, as in ONNX, or last, as TFLite's kernels want them.

The lowerings put a TRANSPOSE before and after each convolution and pool. This pass takes away those that meet, and
moves others through operators that work in any layout (`layout_rules`): a value then lies with channels last from
convolution to convolution. What remains is the cheapest, counted in elements transposed: each operator of that kind
takes one of two layouts, each value is transposed once if a reader wants it otherwise than it is made, and the least
sum of that is a minimum cut. Inputs and outputs of a program keep the layout of ONNX.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from flagsplit.targets.tflite.layout_rules import may_move, moved
from flagsplit.targets.tflite.program import Operator, Program, Tensor, nchw, nhwc
from flagsplit.targets.tflite.shuffles import gather_shuffles

_SECOND, _LAST = False, True
STEP = 64
"""What a transpose costs beside its elements."""


def settle_layouts(program: Program, step: int = STEP) -> Program:
    """The same program with as few transposes as it needs; `program` is used up.

    Args:
        program: as it was lowered.
        step: what a transpose costs beside its elements.
    """
    program = gather_shuffles(program)
    program.operators = used_operators(program.operators, program.outputs)
    flexible = [each for each in program.operators if may_move(each)]
    chosen = _choose(program, flexible, step)
    return _Rewriter(program, chosen).program()


def permutation_of(operator: Operator) -> tuple[int, ...] | None:
    """The permutation of a TRANSPOSE."""
    if operator.code != "TRANSPOSE" or operator.inputs[1] is None or operator.inputs[1].data is None:
        return None
    return tuple(int(each) for each in operator.inputs[1].data)


def trivial(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether a permutation moves no element: only ones change their place."""
    kept = [each for each in perm if shape[each] != 1]
    return kept == sorted(kept)


def _choose(program: Program, flexible: Sequence[Operator], step: int) -> dict[Operator, bool]:
    """For each operator that has the choice, whether it works with channels last."""
    if not flexible:
        return {}
    from ortools.graph.python.max_flow import SimpleMaxFlow

    flow = SimpleMaxFlow()
    number = {operator: at + 2 for at, operator in enumerate(flexible)}
    free = iter(range(len(flexible) + 2, 1 << 30))
    many = 1 << 50
    for value, (maker, readers) in _wishes(program, number).items():
        price = 0 if trivial(value.shape, nhwc(value.rank)) else value.size + step
        price += 1
        others = {reader for reader in readers if reader != maker}
        if not others:
            continue
        # Source (0) is channels second, sink (1) channels last. One auxiliary node charges a value once for any number
        # of readers on the other side.
        if maker != 1:
            helper = next(free)
            flow.add_arc_with_capacity(maker, helper, price)
            for reader in others - {0}:
                flow.add_arc_with_capacity(helper, reader, many)
        if maker != 0:
            helper = next(free)
            flow.add_arc_with_capacity(helper, maker, price)
            for reader in others - {1}:
                flow.add_arc_with_capacity(reader, helper, many)
    if flow.num_arcs() == 0:
        return dict.fromkeys(flexible, _SECOND)
    flow.solve(0, 1)  # type: ignore[no-untyped-call]
    second = set(flow.get_source_side_min_cut())  # of equal cuts the one with channels last in more places: it fuses
    return {operator: at not in second for operator, at in number.items()}


def _wishes(program: Program, number: dict[Operator, int]) -> dict[Tensor, tuple[int, set[int]]]:
    """For each value the node of who makes it, and the nodes of who reads it, in the cut."""
    makers: dict[Tensor, int] = {}
    readers: dict[Tensor, set[int]] = defaultdict(set)
    for value in program.inputs:
        makers[value] = 0
    for operator in program.operators:
        perm = permutation_of(operator)
        for value in operator.outputs:
            back = perm is not None and value.rank >= 3 and perm == nchw(value.rank)
            makers[value] = number.get(operator, 1 if back else 0)
        for value in _read(operator):
            if perm is not None:
                if value.rank >= 3 and perm == nhwc(value.rank):
                    readers[value].add(1)
            else:
                readers[value].add(number.get(operator, 0))
    for value in program.outputs:
        readers[value].add(0)
    return {value: (maker, readers[value]) for value, maker in makers.items() if value.rank >= 3}


def _read(operator: Operator) -> Iterable[Tensor]:
    return dict.fromkeys(each for each in operator.inputs if each is not None and each.data is None)


class _Rewriter:
    """Writes the program again with each operator in its layout."""

    def __init__(self, program: Program, chosen: dict[Operator, bool]) -> None:
        self._old = program
        self._chosen = chosen
        self._operators: list[Operator] = []
        self._forms: dict[tuple[Tensor, tuple[int, ...]], Tensor] = {}
        self._source: dict[Tensor, tuple[Tensor, tuple[int, ...]]] = {}

    def program(self) -> Program:
        for value in self._old.inputs:
            self._stored(value, value, tuple(range(value.rank)))
        for operator in self._old.operators:
            self._write(operator)
        outputs = [self._form(value, tuple(range(value.rank))) for value in self._old.outputs]
        return Program(self._old.inputs, outputs, used_operators(self._operators, outputs))

    def _stored(self, old: Tensor, new: Tensor, perm: tuple[int, ...]) -> None:
        """Let `old`, its dimensions permuted, be `new`."""
        self._source[old] = (new, perm)

    def _form(self, old: Tensor, perm: tuple[int, ...]) -> Tensor:
        """A value with its dimensions permuted."""
        if old.data is not None:
            return old
        new, held = self._source[old]
        return self._transposed(new, tuple(held.index(each) for each in perm))

    def _transposed(self, x: Tensor, perm: tuple[int, ...]) -> Tensor:
        if perm == tuple(range(x.rank)):
            return x
        key = (x, perm)
        if key not in self._forms:
            self._forms[key] = self._move(x, perm)
        return self._forms[key]

    def _move(self, x: Tensor, perm: tuple[int, ...]) -> Tensor:
        made = x.shaped([x.shape[each] for each in perm])
        if trivial(x.shape, perm):
            wanted = numbers(made.shape)
            self._operators.append(Operator("RESHAPE", (x, wanted), (made,), {"newShape": list(made.shape)}))
        else:
            self._operators.append(Operator("TRANSPOSE", (x, numbers(perm)), (made,)))
        return made

    def _write(self, operator: Operator) -> None:
        perm = permutation_of(operator)
        if perm is not None:
            first, output = operator.inputs[0], operator.outputs[0]
            assert first is not None
            if first.data is None:
                new, held = self._source[first]
                self._stored(output, new, tuple(_inverse(perm)[each] for each in held))
                return
        if self._chosen.get(operator, _SECOND) == _LAST:
            inputs = [None if each is None else self._form(each, layout_of(each)) for each in operator.inputs]
            new_operator = moved(operator, inputs)
            for old, new in zip(operator.outputs, new_operator.outputs, strict=True):
                self._stored(old, new, layout_of(old))
            self._operators.append(new_operator)
            return
        inputs = [None if each is None else self._form(each, tuple(range(each.rank))) for each in operator.inputs]
        self._operators.append(Operator(operator.code, tuple(inputs), operator.outputs, operator.options))
        for value in operator.outputs:
            self._stored(value, value, tuple(range(value.rank)))


def layout_of(x: Tensor) -> tuple[int, ...]:
    """The permutation that puts channels last, where there are any."""
    return nhwc(x.rank) if x.rank >= 3 else tuple(range(x.rank))


def numbers(values: Iterable[int]) -> Tensor:
    """A constant list."""
    import numpy as np

    data = np.array(list(values), np.int32)
    return Tensor(data.shape, "int32", data)


def _inverse(perm: Sequence[int]) -> list[int]:
    return sorted(range(len(perm)), key=lambda at: perm[at])


def used_operators(operators: Sequence[Operator], outputs: Sequence[Tensor]) -> list[Operator]:
    """Without operators whose results nobody reads."""
    needed, kept = set(outputs), []
    for operator in reversed(operators):
        if any(each in needed for each in operator.outputs):
            kept.append(operator)
            needed.update(each for each in operator.inputs if each is not None)
    return kept[::-1]
