"""Reshape, Transpose, Reshape with more axes in between than Core ML has, as pixel shuffles and windows are written.

Axes that stay side by side in the transposition are one axis, and axes of one element are none. What is left then
mostly fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from flagsplit.targets.mobile.coreml.lowering.facts import MAX_RANK, NodeFacts, sizes_of, unfit_value
from flagsplit.targets.mobile.coreml.lowering.site import Site, Var


@dataclass(frozen=True, eq=False)
class Chain:
    """Three nodes that are lowered as one, at the last.

    Attributes:
        first, turn, last: the nodes.
        shape: of the operand, with axes merged.
        perm: of these axes.
    """

    first: ir.Node
    turn: ir.Node
    last: ir.Node
    shape: tuple[int, ...]
    perm: tuple[int, ...]


def chain_of(node: ir.Node) -> Chain | None:
    """The chain that a node of fixed shapes is in; None if it is in none."""
    if node.domain or node.op_type not in ("Reshape", "Transpose"):
        return None
    first: ir.Node | None = node
    if node.op_type == "Transpose":
        first = _maker(node)
    elif _rank(node.inputs[0]) > MAX_RANK:
        turn = _maker(node)
        first = _maker(turn) if turn is not None else None
    turn = _only_user(first, "Transpose")
    last = _only_user(turn, "Reshape")
    if first is None or turn is None or last is None or first.op_type != "Reshape":
        return None
    if _rank(first.outputs[0]) <= MAX_RANK or node not in (first, turn, last):
        return None
    fixed = all(NodeFacts(each).is_const(1) for each in (first, last))
    ends = (first.inputs[0], last.outputs[0])
    if not fixed or any(value is None or unfit_value(value, bytes_too=True) for value in ends):
        return None
    sizes = sizes_of(first.outputs[0])
    shape, perm = merged(sizes, NodeFacts(turn).ints("perm", range(len(sizes))[::-1]))
    return Chain(first, turn, last, shape, perm) if len(shape) <= MAX_RANK else None


def lower_chain(site: Site, chain: Chain) -> Var:
    """Build a chain; the site is that of its first node."""
    x = site.transpose(site.reshape(site.var(), chain.shape), chain.perm)
    made = site.reshape(x, sizes_of(chain.last.outputs[0]))
    return site.mb.identity(x=made) if made is site.var() else made


def merged(sizes: Sequence[int], perm: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A transposition with as few axes as can be: the sizes of its operand, and how they are permuted."""
    runs: list[list[int]] = []
    axes = [axis for axis in range(len(sizes)) if sizes[axis] != 1]
    for axis in perm:
        if sizes[axis] == 1:
            continue
        before = axes.index(axis) - 1
        if runs and before >= 0 and runs[-1][-1] == axes[before]:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    ordered = sorted(runs)
    shape = tuple(math.prod(sizes[axis] for axis in run) for run in ordered)
    return shape or (1,), tuple(ordered.index(run) for run in runs) or (0,)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _maker(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None


def _only_user(node: ir.Node | None, operator: str) -> ir.Node | None:
    """The one node that reads what a node makes, if it is of an operator."""
    if node is None or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == operator and not users[0].domain else None
