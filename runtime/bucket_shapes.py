"""What bundles of fixed sizes have in common: their inputs and outputs with the one size that tells them apart open.

A bundle's size counts as fixed where its shape has a number, or where the build was given a range of one size
(`--dim batch=8..8`). Nothing is asked or padded here; see `flagsplit.runtime.bucketed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.errors import ConfigError
from flagsplit.runtime.manifest import Facts, Tensor

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class BucketShapes:
    """The common form of some bundles.

    Attributes:
        symbol: what stands for the size that differs.
        sizes: of the bundles, in the order in which they were given.
        inputs: what a request takes; `symbol` stands at each axis that carries the size.
        outputs: what a request gives, likewise.
    """

    symbol: str
    sizes: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def axes(self, tensor: Tensor) -> tuple[int, ...]:
        """The axes of one of the tensors that carry the size."""
        return tuple(axis for axis, dim in enumerate(tensor.shape) if dim == self.symbol)


def bucket_shapes(bundles: Sequence[Facts], symbol: str = "", *, crop: bool = True) -> BucketShapes:
    """Compare bundles that are to be buckets of one model.

    Args:
        bundles: what each says of itself.
        symbol: name of the size that differs; "" takes the one that the builds pinned, or "size".
        crop: whether outputs are to be cropped, so that it must be known which of their axes carry the size.

    Raises:
        ConfigError: there are fewer than two, they differ in more than one size or in something else, or an output
            has an axis that depends on the size in another way than by being as long.
    """
    if len(bundles) < 2:
        raise ConfigError(f"expected a bundle for each of two sizes or more, came {len(bundles)}; connect to one alone")
    _check_alike(bundles)
    symbol = symbol or _pinned_symbol(bundles) or "size"
    inputs = [_shapes(each, each.inputs) for each in bundles]
    sizes = _sizes([tensor.name for tensor in bundles[0].inputs], inputs)
    opened = {dim for shape in inputs[0] for dim in shape if isinstance(dim, str)}
    if symbol in opened:
        raise ConfigError(f"dimension {symbol!r} is open in the bundles; give the size that differs another name")
    outputs = [_shapes(each, each.outputs) for each in bundles]
    if crop:
        _check_outputs([tensor.name for tensor in bundles[0].outputs], outputs, sizes, opened)
    return BucketShapes(
        symbol,
        sizes,
        _common(bundles[0].inputs, inputs, sizes, symbol),
        _common(bundles[0].outputs, outputs, sizes, symbol),
    )


def _check_alike(bundles: Sequence[Facts]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        for what, one, two in (
            ("tiers", _tiers(first), _tiers(other)),
            ("inputs", _types(first.inputs), _types(other.inputs)),
            ("outputs", _types(first.outputs), _types(other.outputs)),
            ("ranges", _ranges(first), _ranges(other)),
        ):
            if one != two:
                raise ConfigError(f"buckets may differ in one size alone, their {what} are {one} and {two}")


def _tiers(facts: Facts) -> list[str]:
    return [f"{tier.name}={tier.device} ({', '.join(made.target for made in tier.artifacts)})" for tier in facts.tiers]


def _types(tensors: Sequence[Tensor]) -> list[str]:
    return [f"{tensor.name}: {tensor.dtype} of rank {len(tensor.shape)}" for tensor in tensors]


def _ranges(facts: Facts) -> dict[str, tuple[int, ...]]:
    ranges = {name: (low, high) for name, (low, high) in facts.dim_ranges.items() if low != high}
    return {**ranges, **{name: tuple(sizes) for name, sizes in facts.dim_sizes.items()}}


def _pinned(facts: Facts) -> dict[str, int]:
    return {name: low for name, (low, high) in facts.dim_ranges.items() if low == high}


def _pinned_symbol(bundles: Sequence[Facts]) -> str:
    """The one symbol that the builds pinned to different sizes, "" if there is none."""
    pins = [_pinned(each) for each in bundles]
    names = [name for name in pins[0] if len({pin.get(name) for pin in pins}) > 1]
    return names[0] if len(names) == 1 else ""


def _shapes(facts: Facts, tensors: Sequence[Tensor]) -> list[Shape]:
    pinned = _pinned(facts)
    return [tuple(pinned.get(dim, dim) if isinstance(dim, str) else dim for dim in tensor.shape) for tensor in tensors]


def _sizes(names: Sequence[str], shapes: Sequence[Sequence[Shape]]) -> tuple[int, ...]:
    """The sizes that tell the bundles apart."""
    found: dict[tuple[int | str, ...], str] = {}
    for at, name in enumerate(names):
        for axis, dims in enumerate(zip(*(each[at] for each in shapes), strict=True)):
            if len(set(dims)) > 1:
                found.setdefault(dims, f"axis {axis} of input {name!r}")
    if not found:
        raise ConfigError(
            "the bundles all take the same shapes; fix a size in each, such as --dim batch=8..8 when building"
        )
    if len(found) > 1:
        told = " and ".join(f"{list(dims)} at {where}" for dims, where in list(found.items())[:2])
        raise ConfigError(f"buckets may differ in one size alone, came {told}")
    dims, where = next(iter(found.items()))
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    if len(sizes) != len(dims) or len(set(sizes)) != len(sizes):
        raise ConfigError(f"expected another fixed size in each bundle, came {list(dims)} at {where}")
    return sizes


def _check_outputs(
    names: Sequence[str], shapes: Sequence[Sequence[Shape]], sizes: tuple[int, ...], opened: set[str]
) -> None:
    for at, name in enumerate(names):
        for axis, dims in enumerate(zip(*(each[at] for each in shapes), strict=True)):
            is_free = len(set(dims)) == 1 and (isinstance(dims[0], int) or dims[0] in opened)
            if not is_free and dims != sizes:
                raise ConfigError(
                    f"axis {axis} of output {name!r} is {list(dims)} where the sizes are {list(sizes)}: cannot tell "
                    "how to crop it; take crop=False, and crop the answers yourself"
                )


def _common(
    tensors: Sequence[Tensor], shapes: Sequence[Sequence[Shape]], sizes: tuple[int, ...], symbol: str
) -> tuple[Tensor, ...]:
    """The tensors of the first bundle, with the symbol at each axis that carries the size."""
    made = []
    for at, tensor in enumerate(tensors):
        columns = zip(*(each[at] for each in shapes), strict=True)
        shape = [symbol if dims == sizes else dims[0] for dims in columns]
        made.append(Tensor(name=tensor.name, dtype=tensor.dtype, shape=shape))
    return tuple(made)
