"""Why which operator cannot run where: the table behind `Constraints.reasons`, counted by operator, tier and reason."""

from collections import Counter
from dataclasses import dataclass

from flagsplit.flagir.blockgraph import Block
from flagsplit.splitter.problem import Problem


@dataclass(frozen=True)
class Barred:
    """Blocks that cannot run on a tier.

    Attributes:
        operator: the ONNX operator of the node that gives such a block its name, the heaviest.
        tier: where not.
        reason: why not.
        count: how many blocks.
        example: the name of the first.
    """

    operator: str
    tier: str
    reason: str
    count: int
    example: str


def barred_blocks(problem: Problem) -> tuple[Barred, ...]:
    """All of them, by tier in line order, those with most blocks first."""
    counts: Counter[tuple[int, str, str]] = Counter()
    examples: dict[tuple[int, str, str], str] = {}
    for (index, tier), reason in sorted(problem.constraints.reasons.items()):
        block = problem.graph.blocks[index]
        key = tier, main_operator(block), reason
        counts[key] += 1
        examples.setdefault(key, block.name)
    ordered = sorted(counts, key=lambda key: (key[0], -counts[key], key[1:]))
    return tuple(
        Barred(operator, problem.tier_names[tier], reason, counts[tier, operator, reason], examples[key])
        for key in ordered
        for tier, operator, reason in [key]
    )


def main_operator(block: Block) -> str:
    """The operator of the node that a block is named after."""
    at = block.nodes.index(block.name) if block.name in block.nodes else 0
    return block.op_types[at]
