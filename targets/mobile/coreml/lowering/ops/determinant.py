"""The determinant of small matrices, by its formula."""

from itertools import permutations

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var

_LARGEST = 3


def _too_large(facts: NodeFacts) -> str:
    return f"its matrices are larger than {_LARGEST} x {_LARGEST}" if facts.shape()[-1] > _LARGEST else ""


@lowers("Det", dtypes=FLOATS, why_not=_too_large)
def lower_det(site: Site) -> Var:
    mb, size, rank = site.mb, site.shape()[-1], site.rank()
    total = None
    for columns in permutations(range(size)):
        part = None
        for row, column in enumerate(columns):
            element = site.cut(site.cut(site.var(), rank - 2, row, row + 1), rank - 1, column, column + 1)
            part = element if part is None else mb.mul(x=part, y=element)
        inversions = sum(columns[a] > columns[b] for a in range(size) for b in range(a + 1, size))
        total = part if total is None else (mb.sub if inversions % 2 else mb.add)(x=total, y=part)
    return site.reshape(total, site.out_shape())
