"""Figures of a whole model as polynomials in its symbolic dimensions, found at several sizes and checked at others."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.figures import figures_by_node
from flagsplit.flagir.static_shapes import Skeleton, nominal_dims

_POINTS = (1, 2, 3)
"""Multiples of the nominal size that decide a polynomial of degree 2: attention is of degree 2 in the length."""
_CHECKS = (4, 5)
_MOST_SYMBOLS = 3


@dataclass(frozen=True)
class Polynomial:
    """A figure in the symbols of a model.

    Attributes:
        symbols: names of the dimensions.
        terms: coefficient by exponents, one exponent per symbol.
    """

    symbols: tuple[str, ...]
    terms: Mapping[tuple[int, ...], Fraction]

    def at(self, dims: Mapping[str, int]) -> float:
        """The value at these sizes."""
        total = Fraction(0)
        for exponents, factor in self.terms.items():
            for name, exponent in zip(self.symbols, exponents, strict=True):
                factor *= dims[name] ** exponent
            total += factor
        return float(total)

    def __str__(self) -> str:
        parts = []
        for exponents, factor in sorted(self.terms.items(), reverse=True):
            powers = [
                name if exponent == 1 else f"{name}^{exponent}"
                for name, exponent in zip(self.symbols, exponents, strict=True)
                if exponent
            ]
            number = str(factor.numerator) if factor.denominator == 1 else f"{float(factor):.6g}"
            parts.append("*".join([number, *powers] if factor != 1 or not powers else powers))
        return " + ".join(parts).replace("+ -", "- ") or "0"


@dataclass(frozen=True)
class SymbolicTotals:
    """Figures of a whole model in its symbols; None where there is no polynomial, then `basis` says why.

    Attributes:
        flops: of all classes together.
        activation_bytes: bytes of all activations that nodes write.
        weight_bytes: of all initializers; no symbol is in them.
        basis: for which sizes the polynomials hold.
    """

    flops: Polynomial | None
    activation_bytes: Polynomial | None
    weight_bytes: int
    basis: str


def symbolic_totals(model: ir.Model, skeleton: Skeleton | None = None) -> SymbolicTotals:
    """FLOPs and bytes of a whole model as polynomials in its symbolic dimensions.

    Sizes are rounded by strides and windows, so a polynomial may hold for multiples of the nominal sizes only; `basis`
    names them. It is checked at multiples other than those that it was found from.

    Args:
        model: a canonical model.
        skeleton: of the same model, if there is one already.

    Raises:
        ModelError: no usual size fits the model.
    """
    skeleton = skeleton or Skeleton(model)
    nominal = nominal_dims(skeleton, {})
    symbols = tuple(name for name in skeleton.symbols if _may_vary(skeleton, nominal, name))
    weight_bytes = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if len(symbols) > _MOST_SYMBOLS:
        return SymbolicTotals(None, None, weight_bytes, f"no polynomial is sought in more than {_MOST_SYMBOLS} symbols")

    def count(multiples: Sequence[int]) -> tuple[int, int]:
        dims = nominal | {name: nominal[name] * multiple for name, multiple in zip(symbols, multiples, strict=True)}
        rows = figures_by_node(model, skeleton.types(dims)).values()
        return round(sum(row.total_flops for row in rows)), sum(row.write_bytes for row in rows)

    try:
        counts = {grid: count(grid) for grid in itertools.product(_POINTS, repeat=len(symbols))}
        checks = {grid: count(grid) for grid in itertools.product(_CHECKS, repeat=len(symbols))}
    except ModelError as error:
        return SymbolicTotals(None, None, weight_bytes, f"no polynomial: {error}")
    found = [
        _fit(symbols, tuple(nominal[name] for name in symbols), {grid: pair[at] for grid, pair in counts.items()})
        for at in (0, 1)
    ]
    for at, polynomial in enumerate(found):
        for grid, pair in checks.items():
            dims = {name: nominal[name] * multiple for name, multiple in zip(symbols, grid, strict=True)}
            if polynomial.at(dims) != float(pair[at]):
                reason = f"no polynomial of degree 2 holds at {dims}: sizes are rounded on the way"
                return SymbolicTotals(None, None, weight_bytes, reason)
    return SymbolicTotals(found[0], found[1], weight_bytes, _basis_text(skeleton, nominal, symbols))


def _may_vary(skeleton: Skeleton, nominal: dict[str, int], name: str) -> bool:
    try:
        skeleton.types(nominal | {name: 2 * nominal[name]})
    except ModelError:
        return False
    return True


def _basis_text(skeleton: Skeleton, nominal: Mapping[str, int], symbols: Sequence[str]) -> str:
    parts = [
        f"{name} {'a multiple of ' if name in symbols else '= '}{size}"
        for name, size in nominal.items()
        if size > 1 or name not in symbols
    ]
    opened = len(skeleton.open_values(nominal))
    if opened:
        parts.append(f"{opened} values have sizes that depend on data, which count as 1")
    return ", ".join(parts) or "all sizes"


def _fit(symbols: tuple[str, ...], units: tuple[int, ...], counts: Mapping[tuple[int, ...], int]) -> Polynomial:
    """The polynomial of degree 2 in each symbol through all points, by Lagrange's formula in each of them."""
    terms: dict[tuple[int, ...], Fraction] = {}
    for grid, wanted in counts.items():
        bases = [_basis(at, unit) for at, unit in zip(grid, units, strict=True)]
        for exponents in itertools.product(range(len(_POINTS)), repeat=len(symbols)):
            factor = Fraction(wanted)
            for basis, exponent in zip(bases, exponents, strict=True):
                factor *= basis[exponent]
            terms[exponents] = terms.get(exponents, Fraction(0)) + factor
    return Polynomial(symbols, {exponents: factor for exponents, factor in terms.items() if factor})


def _basis(at: int, unit: int) -> list[Fraction]:
    """Coefficients of the polynomial that is 1 at `at * unit` and 0 at the other points."""
    found = [Fraction(1)]
    for other in _POINTS:
        if other != at:
            span = Fraction((at - other) * unit)
            shifted = [Fraction(0), *(factor / span for factor in found)]
            lowered = [-factor * other * unit / span for factor in found] + [Fraction(0)]
            found = [one + two for one, two in zip(shifted, lowered, strict=True)]
    return found
