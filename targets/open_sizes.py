"""The sizes that one chip program is for, where it is for more than one: those of a list, or the ends of ranges.

A chip part is cut out at each of these sizes. What is alike in all of them is the program; where a tensor's size
differs, its dimension is open, and gets the name of the symbol that it is as long as, or one of its own.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir import Segment
from flagsplit.targets.chip_parts import FixedSizes, fixed_sizes
from flagsplit.targets.interface import CompileOptions, Shapes
from flagsplit.targets.segment_table import OpenDim

MOST_SHAPES = 128
"""How many combinations of listed sizes there may be."""


_FEW = 8
"""Ranges of so many sizes are looked at as a whole."""


def sizes_to_build_for(
    shapes: Shapes, model: ir.Model, segments: Sequence[Segment], options: CompileOptions
) -> "OpenSizes":
    """What the sizes decide that a target is to compile for.

    Args:
        shapes: what the target takes.
        model: the canonical model; it stays as it is.
        segments: of that model.
        options: with the nominal sizes, ranges and lists.

    Raises:
        ModelError: there are more than `MOST_SHAPES` combinations of listed sizes, or the model is none at a size.
    """
    dims = _asked(options, shapes)
    types = [fixed_sizes(model, each, segments) for each in dims]
    for each in _between(options) if shapes == "ranged" else ():
        if each not in dims:
            with suppress(ModelError):  # requests of a size at which the graph contradicts itself fail anywhere
                types.append(fixed_sizes(model, each, segments))
                dims.append(each)
    return OpenSizes(shapes if len(dims) > 1 else "fixed", dims, types)


def _between(options: CompileOptions) -> Iterator[dict[str, int]]:
    """Sizes inside of ranges: after as many halvings as may be, or a third, their remainders are all that there are.

    Paddings depend on such remainders, so programs that agree at the ends of a range could differ between them.
    """
    for name, (low, high) in options.ranges.items():
        sizes = list(range(low, high + 1)) if high - low < _FEW else []
        for modulus in (96, 32, 8, 4):
            middle = min(max(options.dims[name], low + modulus), high - 1) // modulus * modulus
            if not sizes and low < middle < high:
                sizes = [middle - 1, middle, middle + 1]
        yield from ({**options.dims, name: size} for size in sizes)


def _asked(options: CompileOptions, shapes: Shapes) -> list[dict[str, int]]:
    """The sizes of all symbols that a program is to be for, the nominal ones first; those alone where all are fixed."""
    nominal = dict(options.dims)
    found = [nominal]
    if shapes == "enumerated":
        lists = {name: sizes for name, sizes in options.listed.items() if len(sizes) > 1}
        count = 1
        for sizes in lists.values():
            count *= len(sizes)
        if count > MOST_SHAPES:
            raise ModelError(f"expected at most {MOST_SHAPES} combinations of sizes, came {count}; list fewer")
        found += [{**nominal, **dict(zip(lists, sizes, strict=True))} for sizes in itertools.product(*lists.values())]
    elif shapes == "ranged":
        ends = {name: ends for name, ends in options.ranges.items() if ends[0] < ends[1]}
        found += [{**nominal, name: end} for name, both in ends.items() for end in both]
        found += [{**nominal, **{name: both[at] for name, both in ends.items()}} for at in (0, 1)]
    return list({tuple(sorted(sizes.items())): sizes for sizes in found}.values())


def variations(sizes: Sequence[Mapping[str, int]]) -> list[int]:
    """Which of the sizes show how a program depends on each symbol: those where only it is another.

    Args:
        sizes: the nominal ones first.

    Returns:
        Indices of sizes, without that of the nominal ones.
    """
    nominal, found = sizes[0], dict[int, None]()
    for name, size in nominal.items():
        alone = [at for at, each in enumerate(sizes) if all(each[k] == v for k, v in nominal.items() if k != name)]
        alone.sort(key=lambda at: sizes[at][name])
        found.update({at: None for at in alone if sizes[at][name] != size})
    return list(found)


@dataclass(frozen=True, eq=False)
class OpenSizes:
    """What is known of a model's values at several sizes.

    Attributes:
        shapes: what the target takes; "fixed" if there is only one size.
        dims: size of each symbol; the nominal ones first.
        types: what these decide, in the same order.
    """

    shapes: Shapes
    dims: Sequence[Mapping[str, int]]
    types: Sequence[FixedSizes]

    def shapes_of(self, name: str) -> tuple[tuple[int, ...], ...]:
        """The shapes of a value at all sizes."""
        return tuple(each.types[name].shape for each in self.types)

    def shape_of(self, name: str) -> list[int | str]:
        """The shape of a value; a symbol where its size is open."""
        nominal = self.types[0]
        if any(name in each.opened for each in self.types):
            return [f"d{at}" for at in range(len(nominal.types[name].shape))]
        return [self._dim(name, at, sizes) for at, sizes in enumerate(zip(*self.shapes_of(name), strict=True))]

    def _dim(self, name: str, at: int, sizes: tuple[int, ...]) -> int | str:
        if len(set(sizes)) == 1:
            return sizes[0]
        return next((k for k in self.dims[0] if tuple(each[k] for each in self.dims) == sizes), f"{name}.{at}")

    def table(self) -> dict[str, OpenDim]:
        """The open symbols, as `segments.json` has them."""
        found = {}
        for name, nominal in self.dims[0].items():
            sizes = sorted({each[name] for each in self.dims})
            if len(sizes) > 1:
                listed = sizes if self.shapes == "enumerated" else None
                found[name] = OpenDim(nominal=nominal, low=sizes[0], high=sizes[-1], sizes=listed)
        return found
