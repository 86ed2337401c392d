"""What the cost model says of a plan on this very host, for the shapes that were really sent."""

from collections.abc import Mapping
from dataclasses import dataclass

from flagsplit import flagir
from flagsplit.apps.host_profile import measure_host
from flagsplit.flagir import BlockGraph, Skeleton
from flagsplit.runtime.bundle import GRAPH_NAME, Bundle
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.plan_maker import make_plan
from flagsplit.splitter.problem import make_problem
from flagsplit.targets.interface import Array


@dataclass(frozen=True)
class Prediction:
    """Modelled figures of one request.

    Attributes:
        run_ms: milliseconds of computing, by tier.
        latency_ms: of the whole request, messages included.
    """

    run_ms: Mapping[str, float]
    latency_ms: float


class HostPrediction:
    """Predictions for all tiers on this host, joined by loopback.

    The devices are measured (`flagsplit.apps.host_profile`), the prediction is modelled.

    Args:
        bundle: whose plans to predict.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._model = flagir.load((bundle.folder / GRAPH_NAME).parent)
        self._skeleton = Skeleton(self._model)
        self._graphs: dict[tuple[tuple[str, int], ...], BlockGraph] = {}
        device = measure_host()
        self._tiers = [Tier(name, device) for name in bundle.tiers]
        self._links = [load_catalogue().links["loopback"]] * (len(bundle.tiers) - 1)

    def predict(self, plan: str, inputs: Mapping[str, Array]) -> Prediction:
        """The figures of a pooled plan on this host, at the shapes of these inputs."""
        placement = self._bundle.plan(plan).placement
        problem = make_problem(self._graph(inputs), self._tiers, self._links)
        seconds = problem.costs.seconds
        run_ms = {
            name: 1e3 * sum(float(seconds[block, tier]) for block, at in enumerate(placement) if at == tier)
            for tier, name in enumerate(self._bundle.tiers)
        }
        return Prediction(run_ms, make_plan(problem, placement, plan).predicted.latency_s * 1e3)

    def _graph(self, inputs: Mapping[str, Array]) -> BlockGraph:
        shapes = {name: array.shape for name, array in inputs.items()}
        dims = flagir.dims_of_shapes(self._skeleton, shapes)
        key = tuple(sorted(dims.items()))
        if key not in self._graphs:
            nominal = self._bundle.facts.nominal_dims
            self._graphs[key] = flagir.block_graph(self._model, {**nominal, **dims}, self._skeleton)
        return self._graphs[key]
