"""What a graph costs to run and to hold: work and bytes by node, block or segment, liveness, peaks, figures in symbols.

Figures are exact at concrete sizes. Where dimensions are symbols, `symbolic_totals` gives polynomials in them, found by
counting at several sizes and checked at others. How the work of one operator is counted is in `flagsplit.flagir.work`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.loops import trips_of, trips_that_count
from flagsplit.flagir.reads import activations_read, readers_of, subgraphs_of, weights_read
from flagsplit.flagir.static_shapes import Skeleton, nominal_dims
from flagsplit.flagir.types import ValueType
from flagsplit.flagir.work import is_view, work_of

Types = Mapping[str, ValueType]

_POINTS = (1, 2, 3)
"""Multiples of the nominal size that decide a polynomial of degree 2: attention is of degree 2 in the length."""
_CHECKS = (4, 5)
_MOST_SYMBOLS = 3


@dataclass(frozen=True)
class Figures:
    """The cost of a node, or of several that run together.

    Attributes:
        flops: floating-point operations, 2 x MACs, by class (`flagsplit.flagir.blockgraph.OP_CLASSES`).
        read_bytes: activations that enter.
        write_bytes: activations that leave.
        weight_bytes: initializers that are read, each once.
        touched_weight_bytes: weight bytes that one run reads, those of each node (an embedding reads rows).
        notes: what the counts suppose, such as the trips of a loop.
    """

    flops: Mapping[str, float]
    read_bytes: int
    write_bytes: int
    weight_bytes: int
    touched_weight_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total_flops(self) -> float:
        """Of all classes."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Lifetime:
    """When a value is held, as positions in the order of execution; both ends are included.

    Attributes:
        first: the node that makes it; -1 for an input of the graph.
        last: the last node that reads it or a view of it; that of the last node if the graph returns it.
    """

    first: int
    last: int


@dataclass(frozen=True)
class Peak:
    """The most activation bytes that are held at once, and where."""

    size_bytes: int
    node: str


def figures_of(model: ir.Model, types: Types, nodes: Iterable[str] | None = None) -> Figures:
    """The cost of some nodes of the main graph: of one, of a block, of a segment, or of all.

    Args:
        model: a canonical model.
        types: of its values, from `Skeleton.types`.
        nodes: their names; all by default.

    Raises:
        ModelError: the graph has no node of that name.
    """
    chosen = _chosen(model, nodes)
    inside = set(chosen)
    readers = readers_of(model.graph)
    entering = dict.fromkeys(v for node in chosen for v in activations_read(node) if v.producer() not in inside)
    leaving = [
        value
        for node in chosen
        for value in node.outputs
        if value.is_graph_output() or not inside.issuperset(readers.get(value, ()))
    ]
    flops: dict[str, float] = {}
    touched, notes = 0, dict[str, None]()
    for node in chosen:
        work = work_of(node, types)
        for name, count in work.by_class.items():
            flops[name] = flops.get(name, 0.0) + count
        touched += work.touched_weight_bytes
        if work.note:
            notes[work.note] = None
    weights = dict.fromkeys(value for node in chosen for value in weights_read(node))
    return Figures(
        flops,
        sum(size_of(value, types) for value in entering),
        sum(size_of(value, types) for value in leaving),
        sum(value.const_value.nbytes for value in weights if value.const_value is not None),
        touched,
        tuple(notes),
    )


def figures_by_node(model: ir.Model, types: Types) -> dict[str, Figures]:
    """The cost of each node of the main graph; of its outputs, those that nobody reads count too: they are written."""
    found = {}
    for node in model.graph:
        work = work_of(node, types)
        found[node.name or ""] = Figures(
            work.by_class,
            sum(size_of(value, types) for value in activations_read(node)),
            sum(size_of(value, types) for value in node.outputs if value.name),
            sum(value.const_value.nbytes for value in weights_read(node) if value.const_value is not None),
            work.touched_weight_bytes,
            (work.note,) if work.note else (),
        )
    return found


def size_of(value: ir.Value, types: Types) -> int:
    """Bytes of a value; what is no tensor, or has no known type, counts as none."""
    kind = types.get(value.name or "")
    return kind.size_bytes if kind is not None else 0


def lifetimes(model: ir.Model, order: Sequence[str] | None = None) -> dict[str, Lifetime]:
    """When each activation is held.

    Args:
        model: a canonical model.
        order: names of all nodes in an order of execution; that of the graph by default.

    Raises:
        ModelError: the order leaves a node out, or runs one before what it reads.
    """
    return {value.name or "": lifetime for value, lifetime in _lifetimes(model, _ordered(model, order)).items()}


def peak_activations(model: ir.Model, types: Types, order: Sequence[str] | None = None) -> Peak:
    """The most activation bytes that are held at once.

    While a node runs, what it reads and what it writes is held, and what later nodes need. A view (`Reshape` and the
    like) shares the bytes of its source. A subgraph adds its own peak, `If` that of the larger branch.

    Args:
        model: a canonical model.
        types: of its values, from `Skeleton.types`.
        order: names of all nodes in an order of execution; that of the graph by default.

    Raises:
        ModelError: the order leaves a node out, or runs one before what it reads.
    """
    nodes = _ordered(model, order)
    size_bytes, at = _peak(nodes, _lifetimes(model, nodes), types)
    return Peak(size_bytes, nodes[at].name or "" if nodes else "")


def _lifetimes(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[ir.Value, Lifetime]:
    return _spans(model.graph.inputs, nodes, model.graph.outputs)


def _spans(
    inputs: Iterable[ir.Value], nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]
) -> dict[ir.Value, Lifetime]:
    first: dict[ir.Value, int] = dict.fromkeys(inputs, -1)
    last = dict(first)
    for at, node in enumerate(nodes):
        for value in activations_read(node):
            if value in first:
                last[value] = at
        for value in node.outputs:
            if value.name:
                first[value] = last[value] = at
    for value in outputs:
        if value in first:
            last[value] = max(0, len(nodes) - 1)
    for node in reversed(nodes):
        if _is_view(node) and node.inputs[0] in first and node.outputs[0] in last:
            source = node.inputs[0]
            last[source] = max(last[source], last[node.outputs[0]])
    return {value: Lifetime(first[value], last[value]) for value in first}


def _is_view(node: ir.Node) -> bool:
    return bool(node.inputs) and node.inputs[0] is not None and is_view(node)


def _peak(nodes: Sequence[ir.Node], spans: Mapping[ir.Value, Lifetime], types: Types) -> tuple[int, int]:
    """The peak in bytes and the position of its node."""
    begins = [0] * (len(nodes) + 1)
    ends = [0] * (len(nodes) + 1)
    for value, span in spans.items():
        maker = value.producer()
        if span.first >= 0 and maker is not None and _is_view(maker) and maker.inputs[0] in spans:
            continue
        begins[max(span.first, 0)] += size_of(value, types)
        ends[span.last] += size_of(value, types)
    held, best = 0, (0, 0)
    for at, node in enumerate(nodes):
        held += begins[at]
        inner = _inner_peak(node, types)
        if held + inner > best[0]:
            best = (held + inner, at)
        held -= ends[at]
    return best


def _inner_peak(node: ir.Node, types: Types) -> int:
    """The peak inside a node; of a loop that of its last trip, when what it carries is longest."""
    bodies = subgraphs_of(node)
    if node.op_type == "Loop" and not node.domain and len(bodies) == 1:
        types = trips_that_count(node, types, trips_of(node).count)[-1].types
    of_bodies = ((list(body), body) for body in bodies)
    return max((_peak(nodes, _spans(b.inputs, nodes, b.outputs), types)[0] for nodes, b in of_bodies), default=0)


def _chosen(model: ir.Model, names: Iterable[str] | None) -> list[ir.Node]:
    if names is None:
        return list(model.graph)
    wanted = set(names)
    found = [node for node in model.graph if node.name in wanted]
    if len(found) != len(wanted):
        missing = min(wanted - {node.name or "" for node in found})
        raise ModelError(f"expected names of nodes of the graph, came {missing!r}; flagsplit show lists them")
    return found


def _ordered(model: ir.Model, order: Sequence[str] | None) -> list[ir.Node]:
    if order is None:
        return list(model.graph)
    by_name = {node.name or "": node for node in model.graph}
    if sorted(order) != sorted(by_name):
        raise ModelError(f"expected an order of all {len(by_name)} nodes, each once, came {len(order)} names")
    nodes = [by_name[name] for name in order]
    made: set[ir.Value] = {*model.graph.inputs}
    for node in nodes:
        missing = [value.name for value in activations_read(node) if value not in made]
        if missing:
            raise ModelError(f"the order runs {node.name!r} before {missing[0]!r}, which it reads, is made")
        made.update(node.outputs)
    return nodes


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
