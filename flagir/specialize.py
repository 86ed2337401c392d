"""Models of fixed sizes, for devices that compile static shapes only: symbols become numbers, shapes are folded.

A model with one open dimension becomes a few of fixed size, its buckets. A request of another size is padded to the
smallest bucket that holds it. **Padding is the caller's**: it knows which values count for nothing (zeros beside a
picture, a mask of 0 after a text), puts them at the end of the dimension, and drops the part of the answer that stems
from them. Where a model has no such values, as one whose convolutions or averages see the border has not, the answer of
a bucket is near the model's own, not equal.
"""

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.errors import ModelError
from flagsplit.flagir.bucket_sizes import smallest_holding
from flagsplit.flagir.passes.fix_names import FixNames
from flagsplit.flagir.passes.folding import folding
from flagsplit.flagir.passes.infer_shapes import InferShapes
from flagsplit.flagir.placement import plans_on
from flagsplit.flagir.static_shapes import Skeleton
from flagsplit.flagir.types import dims_of
from flagsplit.flagir.verify import check

_MOST_ROUNDS = 16


def specialize(model: ir.Model, dims: Mapping[str, int]) -> ir.Model:
    """A copy for fixed sizes.

    Args:
        model: a canonical model, or a segment of one; its codec functions are inlined. It stays as it is.
        dims: a size for symbols of the inputs; those left out stay open.

    Returns:
        A canonical model without plans, of the same inputs and outputs. It shares its weights with `model`; constants
        that the sizes made are its own.

    Raises:
        ModelError: `dims` names no symbol of the inputs or a size below 1, or the graph contradicts itself at them.
    """
    copy = model.clone()
    for plan in plans_on(copy):
        copy.remove_device_configuration(plan, cascade=True)
    common.InlinePass()(copy)
    _check_dims(Skeleton(copy), dims)
    _bind(copy, dims)
    settle(copy)
    copy.metadata_props.clear()
    copy.metadata_props.update(model.metadata_props)
    check(copy)
    return copy


def settle(model: ir.Model) -> None:
    """Infer and fold, in place, until nothing more becomes constant.

    Args:
        model: without functions and plans; sizes that became known stand in the shapes of its inputs.
    """
    FixNames()(model)
    InferShapes()(model)
    for _ in range(_MOST_ROUNDS):
        if not _fold(model):
            break
        _bind(model, {})  # what inference could not tell before, it may now
        InferShapes()(model)


def open_values(model: ir.Model) -> tuple[str, ...]:
    """The values whose shape is not fixed: after `specialize` with every symbol those that depend on data."""
    return tuple(
        value.name or ""
        for value in (*model.graph.inputs, *(made for node in model.graph for made in node.outputs))
        if isinstance(value.type, ir.TensorType)
        and (value.shape is None or not all(isinstance(dim, int) for dim in value.shape))
    )


class Buckets(Mapping[int, ir.Model]):
    """Models of one symbol's sizes, by size, ascending.

    Attributes:
        symbol: the dimension that tells them apart.
    """

    def __init__(self, symbol: str, models: Mapping[int, ir.Model]) -> None:
        self.symbol = symbol
        self._models = dict(sorted(models.items()))

    def __getitem__(self, size: int) -> ir.Model:
        return self._models[size]

    def __iter__(self) -> Iterator[int]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def holding(self, size: int) -> int:
        """The smallest bucket that holds a size, to which the caller pads.

        Raises:
            InputError: the size is below 1 or no bucket holds it.
        """
        return smallest_holding(self.symbol, self._models, size)


def buckets(model: ir.Model, symbol: str, sizes: Iterable[int], dims: Mapping[str, int] | None = None) -> Buckets:
    """A model for each size of a symbol, all of the same weights.

    Args:
        model: as `specialize` takes it.
        symbol: the dimension that requests differ in.
        sizes: the buckets; repeats count once.
        dims: sizes of other symbols.

    Raises:
        ModelError: there are no sizes, or as for `specialize`.
    """
    wanted = sorted(set(sizes))
    if not wanted:
        raise ModelError(f"expected at least one size for dimension {symbol!r}, came none")
    return Buckets(symbol, {size: specialize(model, {**(dims or {}), symbol: size}) for size in wanted})


def _check_dims(skeleton: Skeleton, dims: Mapping[str, int]) -> None:
    for name, size in dims.items():
        if name not in skeleton.symbols:
            have = ", ".join(skeleton.symbols) or "none"
            raise ModelError(f"expected a symbolic dimension of the inputs ({have}), came {name!r}")
        if size < 1:
            raise ModelError(f"expected a size of at least 1 for dimension {name!r}, came {size}")
    skeleton.types(dims)


def _bind(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Put sizes for the symbols; a symbol that no input has says nothing and is left to inference."""
    known: dict[str | None, int | str] = {
        dim.value: dim.value
        for value in model.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int) and dim.value is not None
    }
    known.update(dims)
    for graph in model.graphs():
        for constant in graph.initializers.values():
            if constant.const_value is not None:
                constant.shape = ir.Shape(dims_of(constant.const_value))  # a folded one was declared with symbols
        for value in (*graph.inputs, *(made for node in graph for made in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else known.get(d.value) for d in value.shape])


def _fold(model: ir.Model) -> bool:
    """One round of folding; whether anything went."""
    before = sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        *folding(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph)) != before
