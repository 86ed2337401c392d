"""Which operators are lowered, and why a node is not.

Each file under `ops/` lowers one operator or a tight family. Beside the lowering it declares what it cannot take, so
`refusal` needs no coremltools and is the one place that says no: `build_program` asks it for every node.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import onnx_ir as ir

from flagsplit.errors import InternalError
from flagsplit.targets.mobile.coreml.lowering.chains import chain_of
from flagsplit.targets.mobile.coreml.lowering.facts import ALL, BYTES, NodeFacts, unfit_constant, unfit_value
from flagsplit.targets.mobile.coreml.lowering.ops import MODULES
from flagsplit.targets.written_out import expanded

Lower = Callable[[Any], Any]
"""From a `Site` to the MIL variable of the node's output, or a tuple of them, None for outputs that nobody reads."""
WhyNot = Callable[[NodeFacts], str]
_F = TypeVar("_F", bound=Lower)


@dataclass(frozen=True)
class Rule:
    """How some operators are lowered.

    Attributes:
        operators: the ONNX operators.
        lower: builds the node.
        dtypes: element types that the first operand may have.
        const: operands that have to be constant. They may have any shape and any integers.
        why_not: why a node of right types cannot be lowered; "" if it can.
        bytes_too: whether operands and outputs may be of 8 bits, which are int32 in the program.
    """

    operators: tuple[str, ...]
    lower: Lower
    dtypes: Collection[ir.DataType]
    const: Collection[int]
    why_not: WhyNot
    bytes_too: bool


def lowers(
    *operators: str,
    dtypes: Collection[ir.DataType] = ALL,
    const: Iterable[int] = (),
    why_not: WhyNot = lambda _: "",
    bytes_too: bool = False,
) -> Callable[[_F], _F]:
    """Declare a lowering; see `Rule`."""

    def declare(lower: _F) -> _F:
        rules = [*getattr(lower, "rules", ()), Rule(operators, lower, dtypes, frozenset(const), why_not, bytes_too)]
        lower.rules = rules  # type: ignore[attr-defined]
        return lower

    return declare


@cache
def rules() -> dict[str, Rule]:
    """The rule of each operator."""
    found: dict[str, Rule] = {}
    for name in MODULES:
        module = import_module(f"flagsplit.targets.mobile.coreml.lowering.ops.{name}")
        for thing in vars(module).values():
            if getattr(thing, "__module__", "") != module.__name__:
                continue
            for rule in getattr(thing, "rules", ()):
                for operator in rule.operators:
                    if operator in found:
                        raise InternalError(f"{operator} is lowered twice, the second time in ops/{name}.py")
                    found[operator] = rule
    return found


def has_rule(node: ir.Node) -> bool:
    """Whether there is a lowering of the operator."""
    return node.op_type in rules()


_REFUSED = {
    "DynamicQuantizeLinear": "its range is taken from activations, where one rounding that falls the other way moves "
    "all that follows; build with --float-products",
}
"""Operators that could be lowered through their definition, and why they are not."""


def refusal(node: ir.Node) -> str | None:
    """Why a node cannot be lowered; None if it can.

    Args:
        node: of a canonical model, of fixed shapes.
    """
    if node.domain:
        return f"{node.domain}.{node.op_type} is no operator of the ONNX standard"
    if chain_of(node) is not None:
        return None
    if node.op_type in _REFUSED:
        return _REFUSED[node.op_type]
    rule = rules().get(node.op_type)
    if rule is not None:
        return _broken_rule(NodeFacts(node), rule) or None
    body = expanded(node, has_rule)
    if body is None:
        return f"there is no lowering of {node.op_type}"
    for inner in body.graph:
        reason = refusal(inner)
        if reason is not None:
            return f"as a function it needs {inner.op_type}: {reason}"
    return None


def _broken_rule(facts: NodeFacts, rule: Rule) -> str:
    for at in sorted(rule.const):
        if facts.has(at) and not facts.is_const(at):
            return f"its operand {facts.value(at).name!r} has to be a constant"
    for at in range(facts.inputs):
        if facts.has(at) and at not in rule.const:
            reason = unfit_value(facts.value(at), bytes_too=rule.bytes_too) or unfit_constant(facts.value(at))
            if reason:
                return reason
    for value in facts.node.outputs:
        if value.name and (reason := unfit_value(value, bytes_too=rule.bytes_too)):
            return reason
    takes_first = {*rule.dtypes, *(BYTES if rule.bytes_too else ())}
    if facts.has(0) and 0 not in rule.const and facts.dtype() not in takes_first:
        takes = ", ".join(sorted(dtype.name.lower() for dtype in rule.dtypes))
        return f"Core ML does not compute it in {facts.dtype().name.lower()} (but in {takes})"
    return rule.why_not(facts)
