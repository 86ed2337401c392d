"""Post-training quantization of a canonical model to int8, with a gate on what it costs.

Ranges come from samples. What comes out is compared with the floating-point model on other samples; while an output
departs too far, nodes go back to floating point, those first that cost most for the work they do. The report says for
each node what became of it and why.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.quantization.observers import OBSERVERS, ObserverName
from flagsplit.flagir.quantization.params import Array
from flagsplit.flagir.quantization.prepare import prepare
from flagsplit.flagir.quantization.probes import Run, Sample, bias_corrections, ranges_on
from flagsplit.flagir.quantization.rewrite import rewrite
from flagsplit.flagir.quantization.scheme import Scheme, scheme_of
from flagsplit.flagir.quantization.sensitivity import costs_of
from flagsplit.flagir.static_shapes import Skeleton, dims_of_shapes, nominal_dims
from flagsplit.flagir.work import work_of

MIN_COSINE = 0.999
MIN_TASK = 0.99

Task = Callable[[Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]], float]

_MOST_PROBED = 3
_MOVES_PER_WORK = 1e4


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize.

    Attributes:
        observer: which range of an activation is held.
        correct_bias: whether biases make up for the mean of the weights' rounding errors.
        min_cosine: of every output to that of the floating-point model, all samples taken as one vector, so that one on
            which the output is next to nothing counts for as little.
        kept: nodes that are to stay in floating point whatever they cost, with the reason.
        task: how much of what the model is for comes out as in floating point, from 0 to 1, given pairs of its answers
            and those of int8.
        min_task: what has to.
    """

    observer: ObserverName = "minmax"
    correct_bias: bool = True
    min_cosine: float = MIN_COSINE
    kept: Mapping[str, str] = field(default_factory=dict)
    task: Task | None = None
    min_task: float = MIN_TASK


@dataclass(frozen=True)
class NodeReport:
    """What became of a node.

    Attributes:
        node, op_type: which.
        flops: its floating-point operations on the first sample.
        int8: whether it computes in int8.
        cost: what it takes off a cosine when it alone computes in int8; None if that was not tried.
        reason: why it stays in floating point; "" if it does not.
    """

    node: str
    op_type: str
    flops: float
    int8: bool
    cost: float | None
    reason: str


@dataclass(frozen=True)
class Quantized:
    """An int8 model and how it came about.

    Attributes:
        model: with QuantizeLinear and DequantizeLinear.
        nodes: a report of each node of the model, once it was brought into the forms that int8 engines have.
        cosines: of each floating-point output, all samples taken as one vector.
        worst: least cosine of any output on any sample.
        task: what comes out as in floating point, from 0 to 1; None if there is no task.
        samples, checked: how many gave the ranges, and how many were compared.
    """

    model: ir.Model
    nodes: tuple[NodeReport, ...]
    cosines: Mapping[str, float]
    worst: float
    task: float | None
    samples: int
    checked: int

    @property
    def flops_int8(self) -> float:
        """Floating-point operations in int8, as a share of all."""
        total = sum(each.flops for each in self.nodes)
        return sum(each.flops for each in self.nodes if each.int8) / total if total else 0.0

    @property
    def cosine(self) -> float:
        """The least of `cosines`; 1 if there is none."""
        return min(self.cosines.values(), default=1.0)


def quantize(
    model: ir.Model,
    samples: Sequence[Sample],
    run: Run,
    options: QuantizeOptions | None = None,
    checks: Sequence[Sample] | None = None,
) -> Quantized:
    """Quantize a model.

    Args:
        model: canonical; it stays as it is.
        samples: of its inputs, for ranges.
        run: runs a model on samples; the caller's engine.
        options: see there.
        checks: samples that the outcome is compared on; the same if none are given.

    Raises:
        ConfigError: no samples, or an option that is none.
        ModelError: no node can compute in int8 within `min_cosine`.
    """
    options = options or QuantizeOptions()
    _check(samples, options)
    checks = checks or samples
    prepared = model.clone()
    prepare(prepared)
    expected = list(run(model, checks))
    search = _Search(prepared, samples, checks, expected, run, options)
    return search.best()


class _Search:
    """For the fewest nodes in floating point that pass the gate."""

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Sample],
        checks: Sequence[Sample],
        expected: Sequence[Mapping[str, Array]],
        run: Run,
        options: QuantizeOptions,
    ) -> None:
        self._model, self._samples, self._checks, self._expected = model, samples, checks, expected
        self._run, self._options = run, options
        self._work = work_by_node(model, samples[0])
        self._ranges = ranges_on(model, samples, run, options.observer)
        self._cost: dict[str, float] = {}
        self._order: list[str] = []
        self._probed: list[int] = []

    def best(self) -> Quantized:
        every = self._attempt(0)
        if self._passes(every):
            return every
        self._probed = self._spread(every)
        names = [node.node for node in every.nodes if node.int8]
        self._cost = costs_of(names, self._cost_of, (1 - self._options.min_cosine) / len(names) / 2)
        self._order = sorted(names, key=lambda name: -self._cost[name] / self._worth(name))
        failed, found = 0, None
        while failed < len(names) - 1:
            step = max(failed, 1) if found is None else (found[0] - failed) // 2
            if step == 0:
                break
            kept = min(failed + step, len(names) - 1)
            tried = self._attempt(kept)
            if self._passes(tried):
                found = (kept, tried)
            else:
                failed = kept
        if found is None or not any(each.int8 for each in found[1].nodes):
            agreed = "" if every.task is None else f", and {every.task:.2%} of the task comes out the same"
            least = "" if every.task is None else f" and {self._options.min_task:.2%}"
            raise ModelError(
                f"in int8 an output has cosine {every.cosine:.4f} to the floating-point model{agreed}; at least "
                f"{self._options.min_cosine}{least} is wanted, and no node can be int8 within that; leave it in "
                f"floating point, or give samples that are like what it will see"
            )
        return found[1]

    def _passes(self, made: Quantized) -> bool:
        enough = made.task is None or made.task >= self._options.min_task
        return enough and made.cosine >= self._options.min_cosine

    def _worth(self, name: str) -> float:
        """What a node is worth in int8: its work, and a little for being no change of type."""
        return self._work.get(name, 0.0) + sum(self._work.values()) / _MOVES_PER_WORK + 1.0

    def _attempt(self, kept: int) -> Quantized:
        """With so many of the nodes that cost most in floating point."""
        reasons = {name: f"in int8 alone it takes {self._cost[name]:.2g} off a cosine" for name in self._order[:kept]}
        return self._quantized({**reasons, **self._options.kept})

    def _spread(self, every: Quantized) -> list[int]:
        """Positions of a few checks, from those on which int8 does worst to those on which it does best."""
        found = list(self._run(every.model, self._checks))
        near = [min(cosines_of([pair]).values()) for pair in zip(self._expected, found, strict=True)]
        ranked = sorted(range(len(near)), key=lambda at: near[at])
        return [ranked[at * len(ranked) // _MOST_PROBED] for at in range(min(_MOST_PROBED, len(ranked)))]

    def _cost_of(self, some: Collection[str]) -> float:
        """What these nodes take off a cosine when no others compute in int8."""
        alone = set(some)
        others = {node.name or "": "not tried now" for node in self._model.graph if node.name not in alone}
        made = self._model.clone()
        rewrite(made, scheme_of(made.graph, self._ranges, others), {})
        found = self._run(made, [self._checks[at] for at in self._probed])
        pairs = zip((self._expected[at] for at in self._probed), found, strict=True)
        return 1 - min(cosines_of(list(pairs)).values())

    def _quantized(self, reasons: Mapping[str, str]) -> Quantized:
        """With nodes in floating point for these reasons."""
        made = self._model.clone()
        scheme = scheme_of(made.graph, self._ranges, reasons)
        corrections: Mapping[str, Array] = {}
        if self._options.correct_bias:
            corrections = bias_corrections(made, scheme, self._samples, self._run)
        nodes = tuple(self._report(node, scheme) for node in made.graph)
        rewrite(made, scheme, corrections)
        pairs = list(zip(self._expected, self._run(made, self._checks), strict=True))
        worst = min((near for pair in pairs for near in cosines_of([pair]).values()), default=1.0)
        task = self._options.task(pairs) if self._options.task is not None else None
        return Quantized(made, nodes, cosines_of(pairs), worst, task, len(self._samples), len(self._checks))

    def _report(self, node: ir.Node, scheme: Scheme) -> NodeReport:
        name = node.name or ""
        reason = scheme.floating.get(name, "")
        return NodeReport(
            name, node.op_type, self._work.get(name, 0.0), name not in scheme.floating, self._cost.get(name), reason
        )


def cosine(first: Array, second: Array) -> float:
    """Of two arrays taken as vectors."""
    return cosines_of([({"": np.asarray(first, np.float64)}, {"": second})])[""]


def work_by_node(model: ir.Model, sample: Sample) -> dict[str, float]:
    """Floating-point operations of each node on inputs of a sample's sizes."""
    skeleton = Skeleton(model)
    given = {value.name or "": np.shape(sample[value.name or ""]) for value in model.graph.inputs}
    types = skeleton.types(nominal_dims(skeleton, dims_of_shapes(skeleton, given)))
    return {node.name or "": work_of(node, types).flops for node in model.graph}


def cosines_of(pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> dict[str, float]:
    """Of each floating-point output, over samples as one vector; -1 where something is no number."""
    sums: dict[str, NDArray[np.float64]] = {}
    equal: dict[str, bool] = {}
    for expected, found in pairs:
        for name, array in expected.items():
            if array.dtype.kind == "f":
                a, b = (np.asarray(each).astype(np.float64).reshape(-1) for each in (array, found[name]))
                sums[name] = sums.get(name, np.zeros(3)) + np.array((a @ b, a @ a, b @ b))
                equal[name] = equal.get(name, True) and np.array_equal(a, b)
    return {name: 1.0 if equal[name] else _of_sums(*each) for name, each in sums.items()}


def _of_sums(product: float, first: float, second: float) -> float:
    near = product / np.sqrt(first * second) if first * second > 0 else 0.0
    return float(near) if np.isfinite(near) else -1.0


def _check(samples: Sequence[Sample], options: QuantizeOptions) -> None:
    if not samples:
        raise ConfigError("quantization to int8 is calibrated on samples of the model's inputs, came none; give some")
    if options.observer not in OBSERVERS:
        raise ConfigError(f"expected an observer ({', '.join(OBSERVERS)}), came {options.observer!r}")
    if not -1 <= options.min_cosine <= 1:
        raise ConfigError(f"expected a least cosine from -1 to 1, came {options.min_cosine}")
