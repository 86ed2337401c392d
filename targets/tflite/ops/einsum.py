"""Einsum of one or two tensors, without repeated letters in a term, by transposes and one matrix product."""

import math
from collections.abc import Sequence

import onnx_ir as ir

from flagsplit.targets.tflite.builder import Builder
from flagsplit.targets.tflite.ops.matmul import product
from flagsplit.targets.tflite.program import Refused, Tensor


def lower(builder: Builder, node: ir.Node) -> None:
    tensors = builder.takes(node)
    terms, wanted = _terms(node.attributes.get_string("equation", ""), [each.rank for each in tensors])
    tensors = [_summed(builder, each, term, terms, wanted) for each, term in zip(tensors, terms, strict=True)]
    terms = [_kept(term, at, terms, wanted) for at, term in enumerate(terms)]
    if len(tensors) == 1:
        builder.give(node, _ordered(builder, tensors[0], terms[0], wanted))
    elif len(tensors) == 2:
        builder.give(node, _two(builder, tensors, terms, wanted))
    else:
        raise Refused(f"takes equations of one or two terms, came {len(tensors)}")


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each term and of the result; an ellipsis becomes upper-case letters not used else."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    spare = [chr(code) for code in range(0x3B1, 0x3C9)]
    terms = []
    most = max(
        (rank - len(term.replace("...", "")) for term, rank in zip(left.split(","), ranks, strict=True)), default=0
    )
    for term, rank in zip(left.split(","), ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        terms.append(term.replace("...", "".join(spare[most - count : most])))
    if not arrow:
        letters = "".join(terms)
        right = "..." + "".join(sorted(each for each in set(letters) - set(spare) if letters.count(each) == 1))
    wanted = right.replace("...", "".join(spare[:most]))
    if any(len(set(term)) < len(term) for term in (*terms, wanted)):
        raise Refused(f"takes equations without repeated letters in a term, came {equation!r}")
    return terms, wanted


def _kept(term: str, at: int, terms: Sequence[str], wanted: str) -> str:
    others = "".join(other for index, other in enumerate(terms) if index != at)
    return "".join(each for each in term if each in wanted or each in others)


def _summed(builder: Builder, x: Tensor, term: str, terms: Sequence[str], wanted: str) -> Tensor:
    """Without the letters that nothing else has."""
    kept = _kept(term, list(terms).index(term), terms, wanted) if terms.count(term) == 1 else term
    axes = [at for at, letter in enumerate(term) if letter not in kept]
    return builder.reduce("SUM", x, axes, keep=False) if axes else x


def _ordered(builder: Builder, x: Tensor, letters: str, wanted: str) -> Tensor:
    return builder.transpose(x, [letters.index(each) for each in wanted]) if letters != wanted else builder.mul(x, 1)


def _two(builder: Builder, tensors: Sequence[Tensor], terms: Sequence[str], wanted: str) -> Tensor:
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, size in zip(term, tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    left, right = terms
    batch = [each for each in wanted if each in left and each in right]
    over = [each for each in left if each in right and each not in wanted]
    rows = [each for each in wanted if each in left and each not in right]
    columns = [each for each in wanted if each in right and each not in left]
    x = _grouped(builder, tensors[0], left, (batch, rows, over), sizes)
    y = _grouped(builder, tensors[1], right, (batch, over, columns), sizes)
    made = product(builder, x, y)
    order = "".join((*batch, *rows, *columns))
    whole = builder.reshape(made, [sizes[each] for each in order])
    return builder.transpose(whole, [order.index(each) for each in wanted])


def _grouped(
    builder: Builder, x: Tensor, letters: str, groups: Sequence[Sequence[str]], sizes: dict[str, int]
) -> Tensor:
    """Of rank 3: the letters of each group as one dimension."""
    order = [each for group in groups for each in group]
    moved = builder.transpose(x, [letters.index(each) for each in order])
    wide = builder.expand(moved, [sizes[each] for each in order])
    return builder.reshape(wide, [math.prod(sizes[each] for each in group) for group in groups])
