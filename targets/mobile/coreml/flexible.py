"""One function for inputs of several sizes: a list of shapes, or a range for each open dimension.

A chip part comes at a few sizes of each symbol. Where its programs differ in nothing but what follows from their
inputs, the program holds for every size, and is written with open dimensions; where they differ in more, such as a
mask or a padding of a certain size, it is refused, and each size needs a function of its own. Those share weights, so
they cost little; and a function of ranged shapes was seen to run beside the Neural Engine
(`flagsplit.targets.mobile.coreml.ane_rules`, "flexible").
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.mobile.coreml.choices import Choices
from flagsplit.targets.mobile.coreml.lower_part import LoweredPart, lower_part
from flagsplit.targets.mobile.coreml.reopen import SizesDifferError, reopened
from flagsplit.targets.mobile.coreml.sdk import import_sdk

MOST_COMPARED = 12
"""With how many other listed sizes a program is compared: each is held in memory, and all of them have to agree."""


def lower_flexible(part: ChipPart, choices: Choices) -> LoweredPart:
    """Lower a chip part for all of its sizes: those of a list, or whatever lies between the ends of ranges.

    Args:
        part: with `others`; a part without any is lowered as it is.
        choices: of the build; what `shapes` says decides between a list and ranges.

    Raises:
        SizesDifferError: the part is another program at another size, or there are too many to tell.
        ModelError: it cannot be lowered.
    """
    first = lower_part(part, choices)
    if not part.others:
        return first
    if choices.shapes == "enumerated" and len(part.telling) > MOST_COMPARED:
        raise SizesDifferError(f"{len(part.telling) + 1} sizes are more than the {MOST_COMPARED + 1} that are compared")
    telling = [ChipPart(part.segment, part.others[at]) for at in part.telling]
    others = [lower_part(each, choices, decided=first.decided) for each in telling]
    names = [value.name or "" for value in part.model.graph.inputs]
    declared = (
        _listed(part, first.names, names) if choices.shapes == "enumerated" else _ranged(part, first.names, names)
    )
    return replace(first, program=reopened([each.program for each in (first, *others)], declared, choices))


def lower_each(part: ChipPart, choices: Choices) -> Iterator[tuple[ChipPart, LoweredPart]]:
    """Lower a chip part once for each of its sizes, the nominal ones first; each in the same precision.

    Raises:
        SizesDifferError: its inputs do not tell which size a request has.
        ModelError: it cannot be lowered.
    """
    takes = [value.name or "" for value in part.model.graph.inputs]
    shapes = list(zip(*(part.all_shapes[name] for name in takes), strict=True))
    if len(set(shapes)) < 1 + len(part.others):
        raise SizesDifferError("it is another program at another size, and none of its inputs tells which size it is")
    first = replace(part, others=(), open_shapes={})
    lowered = lower_part(first, choices)
    yield first, lowered
    decided = lowered.decided
    for model in part.others:
        del lowered  # it holds weights of its own, and has been written
        other = ChipPart(part.segment, model)
        lowered = lower_part(other, choices, decided=decided)
        yield other, lowered


def _listed(part: ChipPart, called: Mapping[str, str], names: Sequence[str]) -> list[Any]:
    """What the program takes, each input in one shape for each listed size."""
    ct = import_sdk()
    made = []
    for name in names:
        shapes = [shape or (1,) for shape in dict.fromkeys(part.all_shapes[name])]
        shape = ct.EnumeratedShapes(shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
        made.append(ct.TensorType(called[name], shape=shape))
    return made


def _ranged(part: ChipPart, called: Mapping[str, str], names: Sequence[str]) -> list[Any]:
    """What the program takes, each open dimension from its least to its greatest size."""
    ct = import_sdk()
    known: dict[str, Any] = {}
    made = []
    for name in names:
        sizes_of = list(zip(*part.all_shapes[name], strict=True))
        shape: list[Any] = []
        for dim, sizes in zip(part.open_shapes[name], sizes_of, strict=True):
            if isinstance(dim, str) and dim not in known:
                known[dim] = ct.RangeDim(min(sizes), max(sizes), default=sizes[0])
            shape.append(known[dim] if isinstance(dim, str) else dim)
        made.append(ct.TensorType(called[name], shape=shape or (1,)))
    return made
