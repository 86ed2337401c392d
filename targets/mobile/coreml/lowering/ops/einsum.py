"""Einsum, as products of matrices: operands are brought into a common order of labels, two at a time."""

import math

import numpy as np

from flagsplit.targets.mobile.coreml.lowering.facts import FLOATS, MAX_RANK, NodeFacts
from flagsplit.targets.mobile.coreml.lowering.registry import lowers
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


def _parse(facts: NodeFacts) -> tuple[list[str], str]:
    """The labels of operands and result; an ellipsis becomes digits, counted from the end."""
    text = facts.text("equation").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms, longest = [], ""
    for at, term in enumerate(left.split(",")):
        if "..." in term:
            count = facts.rank(at) - (len(term) - 3)
            dots = "0123456789"[:count][::-1]
            longest = max(longest, dots, key=len)
            term = term.replace("...", dots)
        terms.append(term)
    if arrow:
        return terms, right.replace("...", longest)
    every = "".join(terms)
    return terms, longest + "".join(
        sorted(label for label in set(every) if every.count(label) == 1 and label not in longest)
    )


def _odd_equation(facts: NodeFacts) -> str:
    terms, result = _parse(facts)
    have = set(terms[0])
    for at, term in enumerate(terms[1:], 1):
        later = set(result).union(*terms[at + 1 :])
        if len((have & (later | set(term))) | (set(term) & (later | have))) > MAX_RANK and len(terms) > 2:
            return f"a step of it has over {MAX_RANK} labels"
        have = (have | set(term)) & later
        if len(have) > MAX_RANK:
            return f"a product in it is of rank {len(have)}; Core ML goes up to {MAX_RANK}"
    return ""


def _sizes(facts: NodeFacts, terms: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for at, term in enumerate(terms):
        for label, size in zip(term, facts.shape(at), strict=True):
            found[label] = max(size, found.get(label, 1))
    return found


@lowers("Einsum", dtypes=FLOATS, why_not=_odd_equation)
def lower_einsum(site: Site) -> Var:
    terms, result = _parse(site)
    sizes = _sizes(site, terms)
    x, labels = _diagonal(site, site.var(0), terms[0])
    for at in range(1, len(terms)):
        y, other = _diagonal(site, site.var(at), terms[at])
        later = set(result).union(*terms[at + 1 :])
        x, labels = _product(site, (x, labels), (y, other), later, sizes)
    x, labels = _summed(site, x, labels, set(result))
    x = site.transpose(x, [labels.index(label) for label in result]) if labels else x
    return site.mb.identity(x=x) if x is site.var(0) else x


def _diagonal(site: Site, x: Var, labels: str) -> tuple[Var, str]:
    """Each label once: of two axes of the same label only the diagonal counts."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first, second = [at for at, each in enumerate(labels) if each == label][:2]
            rest = [at for at in range(len(labels)) if at not in (first, second)]
            size = x.shape[first]
            x = site.transpose(x, [first, second, *rest])
            x = site.reshape(x, (size * size, *x.shape[2:]))
            x = site.take(x, np.arange(size) * (size + 1), 0)
            labels = label + "".join(labels[at] for at in rest)
    return x, labels


def _summed(site: Site, x: Var, labels: str, kept: set[str]) -> tuple[Var, str]:
    axes = [at for at, label in enumerate(labels) if label not in kept]
    if axes:
        x = site.mb.reduce_sum(x=x, axes=axes, keep_dims=False)
    return x, "".join(label for label in labels if label in kept)


def _product(
    site: Site, left: tuple[Var, str], right: tuple[Var, str], later: set[str], sizes: dict[str, int]
) -> tuple[Var, str]:
    """[batch, rows, inner] times [batch, inner, columns]."""
    x, a = _summed(site, *left, later | set(right[1]))
    y, b = _summed(site, *right, later | set(a))
    batch = [label for label in a if label in b and label in later]
    inner = [label for label in a if label in b and label not in later]
    rows, columns = [label for label in a if label not in b], [label for label in b if label not in a]
    x = site.transpose(x, [a.index(label) for label in (*batch, *rows, *inner)])
    y = site.transpose(y, [b.index(label) for label in (*batch, *inner, *columns)])
    x = site.broadcast(x, [sizes[label] for label in (*batch, *rows, *inner)])
    y = site.broadcast(y, [sizes[label] for label in (*batch, *inner, *columns)])
    count = {
        name: math.prod(sizes[label] for label in part)
        for name, part in (("batch", batch), ("rows", rows), ("inner", inner), ("columns", columns))
    }
    x = site.reshape(x, (count["batch"], count["rows"], count["inner"]))
    y = site.reshape(y, (count["batch"], count["inner"], count["columns"]))
    made = "".join((*batch, *rows, *columns))
    return site.reshape(site.mb.matmul(x=x, y=y), [sizes[label] for label in made]), made
