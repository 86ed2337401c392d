"""What targets say of the nodes of a model, and what follows for its blocks.

A target that takes fixed shapes judges the model at its nominal sizes, where whatever the sizes alone decide is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from flagsplit.flagir import Block, BlockGraph
from flagsplit.flagir.specialize import specialize
from flagsplit.splitter.costs import Handicaps
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import SHAPES_CHOICE, SupportVerdict, TargetDescription


@dataclass(frozen=True)
class NodeVerdicts:
    """What one target says of the nodes of a model.

    Attributes:
        target: its name.
        refused: for each node that it does not take, why.
        on_cpu: for each node that it leaves to the CPU beside its accelerator, what it says of it.
        slow: for each node that its accelerator is slow at, what it says of it.
    """

    target: str
    refused: Mapping[str, str] = field(default_factory=dict)
    on_cpu: Mapping[str, SupportVerdict] = field(default_factory=dict)
    slow: Mapping[str, SupportVerdict] = field(default_factory=dict)

    def of(self, node: str) -> SupportVerdict:
        """What it says of one node."""
        if node in self.refused:
            return SupportVerdict(supported=False, reason=self.refused[node])
        return self.on_cpu.get(node) or self.slow.get(node) or SupportVerdict(supported=True)

    def reason(self, block: Block) -> str | None:
        """Why it does not take a block, or None."""
        return next((self.refused[node] for node in block.nodes if node in self.refused), None)

    def takes(self, nodes: Sequence[str]) -> bool:
        """Whether it takes all of some nodes."""
        return not any(node in self.refused for node in nodes)

    def handicaps(self, graph: BlockGraph) -> Handicaps:
        """What it does not run at its best; a block of which some node runs beside the accelerator does as a whole.

        What is moved between the nodes of a block stays on the chip and costs nothing: only its ends count.
        """
        beside = frozenset(block.index for block in graph.blocks if any(node in self.on_cpu for node in block.nodes))
        ends: dict[int, list[str]] = {}
        for value in graph.values if self.slow else ():
            for index in (value.producer, *value.consumers):
                ends.setdefault(index, []).append(value.name)
        extra = {block.index: self._extra_bytes(block, ends.get(block.index, ())) for block in graph.blocks}
        return Handicaps(beside, {index: moved for index, moved in extra.items() if moved})

    def _extra_bytes(self, block: Block, ends: Sequence[str]) -> float:
        said = [self.slow[node].extra_bytes for node in block.nodes if node in self.slow]
        return sum(max((each.get(name, 0.0) for each in said), default=0.0) for name in ends)


class Judge:
    """Asks targets about a model.

    Args:
        model: a canonical model.
        dims: nominal size of each of its symbols.
        ranges: sizes that requests may have, where the user named some.
        choices: of the build, by target.
    """

    def __init__(
        self,
        model: ir.Model,
        dims: Mapping[str, int],
        ranges: Mapping[str, tuple[int, int]],
        choices: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._model = model
        self._dims = dims
        self._open = [name for name, (low, high) in ranges.items() if low != high]
        self._choices = choices or {}
        self._said: dict[str, NodeVerdicts] = {}

    def verdicts(self, name: str) -> NodeVerdicts:
        """What the target of that name says of all nodes."""
        if name not in self._said:
            self._said[name] = self._ask(name)
        return self._said[name]

    @cached_property
    def _fixed(self) -> ir.Model:
        """The model at its nominal sizes; nodes that are left have the names that they have in the model."""
        return specialize(self._model, self._dims)

    def _ask(self, name: str) -> NodeVerdicts:
        target = get_target(name)
        description = target.describe()
        refused: dict[str, str] = {}
        on_cpu: dict[str, SupportVerdict] = {}
        slow: dict[str, SupportVerdict] = {}
        choices = self._choices.get(name, {})
        shapes = description.shapes(choices)
        off = description.off_accelerator(choices)
        at_once = shapes == "any" or (shapes == "fixed" and self._open)
        for node in (self._model if at_once else self._fixed).graph:
            verdict = target.supports(node)
            if off is not None and verdict.supported and verdict.unit == "accelerator":
                verdict = off
            against = self._against(description, node)
            why = verdict.reason if not verdict.supported and not (self._open and against) else against
            if why is not None:
                refused[node.name or ""] = why
            elif verdict.unit == "cpu":
                on_cpu[node.name or ""] = verdict
            elif verdict.extra_bytes:
                slow[node.name or ""] = verdict
        return NodeVerdicts(name, refused, on_cpu, slow)

    def _against(self, description: TargetDescription, node: ir.Node) -> str | None:
        """Why a target does not take the shapes of a node's tensors, or None."""
        for value in (*node.inputs, *node.outputs):
            dims = tuple(value.shape) if value is not None and value.shape is not None else ()
            opened = next((dim for dim in dims if not isinstance(dim, int)), None)
            if description.static_shapes and opened is not None and value is not None:
                return f"{description.name} takes fixed shapes only, and {opened} of {value.name!r} is open" + (
                    self._todo(description) if self._open else ""
                )
            if len(dims) > description.max_rank and value is not None:
                return (
                    f"{description.name} takes ranks up to {description.max_rank}, and {value.name!r} has {len(dims)}"
                )
        return None

    @staticmethod
    def _todo(description: TargetDescription) -> str:
        flexible = SHAPES_CHOICE in description.choices
        return f"; choose {description.name}.{SHAPES_CHOICE}" if flexible else "; build it a bundle of one size"


def first_reason(block: Block, verdicts: Sequence[NodeVerdicts]) -> str | None:
    """Why a block cannot run where all of these targets have to take it, or None."""
    return next((why for said in verdicts if (why := said.reason(block)) is not None), None)
