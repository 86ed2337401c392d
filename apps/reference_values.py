"""What the reference gives on samples: every tensor that passes between segments, and every plan's answer.

A plan's own graph counts, with its codecs. It is run once a sample with all boundary tensors as further outputs; a cut
never divides a block, so the engine fuses as it does in the unsplit model. The answers come from the unsplit model, and
of lossy plans from their reference (`flagsplit reference`), which have no such outputs.
"""

from collections.abc import Sequence
from functools import cached_property

from flagsplit.apps.part_engines import ReferenceEngine
from flagsplit.apps.plan_graphs import PlanGraphs, is_lossy, plan_reference
from flagsplit.apps.verification import Sample
from flagsplit.flagir import Segment
from flagsplit.flagir.reads import activations_read
from flagsplit.runtime.bundle import Bundle
from flagsplit.targets.interface import Array, LoadOptions

Values = dict[str, Array]


class ReferenceValues:
    """The reference of a bundle on samples; what was run is kept.

    Args:
        bundle: the bundle.
        graphs: its plans, cut.
        samples: inputs of requests.
        host: choices of this host.
    """

    def __init__(self, bundle: Bundle, graphs: PlanGraphs, samples: Sequence[Sample], host: LoadOptions) -> None:
        self._bundle, self._graphs, self._samples, self._host = bundle, graphs, samples, host
        self._values: dict[frozenset[str], list[Values]] = {}
        self._answers: dict[str, list[Values]] = {}
        self._nodes = {
            plan: frozenset(name for step in steps for name in step.segment.nodes)
            for plan, steps in graphs.steps.items()
        }

    def boundaries(self, plan: str) -> list[Values]:
        """For each sample, the inputs and all tensors that pass between the plan's segments, by name."""
        nodes = self._nodes[plan]
        if nodes not in self._values:
            part = self._whole(nodes)
            engine = ReferenceEngine(self._bundle, self._graphs.model, self._host)
            self._values[nodes] = [
                {**sample.tensors, **made}
                for sample, made in zip(
                    self._samples, engine.run_all(part, [each.tensors for each in self._samples]), strict=True
                )
            ]
        return self._values[nodes]

    def answers(self, plan: str) -> list[Values]:
        """For each sample, the graph outputs that the plan must give."""
        if not is_lossy(self._bundle.plan(plan)):
            return self.unsplit
        if plan not in self._answers:
            with plan_reference(self._bundle, plan, self._host) as loaded:
                self._answers[plan] = [loaded.run(sample.tensors) for sample in self._samples]
        return self._answers[plan]

    @cached_property
    def unsplit(self) -> list[Values]:
        """For each sample, what the unsplit model gives."""
        loaded = self._bundle.load_whole(self._host)
        try:
            return [loaded.run(sample.tensors) for sample in self._samples]
        finally:
            loaded.close()

    def _whole(self, nodes: frozenset[str]) -> Segment:
        """All nodes of plans that run the same ones, with the boundary tensors of all these plans."""
        steps = [step for plan, names in self._nodes.items() if names == nodes for step in self._graphs.steps[plan]]
        outputs = dict.fromkeys(name for step in steps for name in step.segment.outputs)
        ordered = [node for node in self._graphs.model.graph if node.name in nodes]
        made = {value for node in ordered for value in node.outputs}
        inputs = dict.fromkeys(
            value.name or "" for node in ordered for value in activations_read(node) if value not in made
        )
        return Segment("reference", tuple(node.name or "" for node in ordered), tuple(inputs), tuple(outputs))
