"""Pools for `adapt.py`: real models on three tiers of the speeds of `emulated.py`, planned, not built.

Seconds of blocks are modelled for a phone's CPU and slowed down as the emulated tiers are.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.planning import plan
from flagsplit.apps.zoo import pull
from flagsplit.flagir import BlockGraph
from flagsplit.splitter.costs import CostModel
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State

TIERS = ("phone", "edge", "cloud")
SLOWDOWNS = (12.0, 4.0, 1.0)
DEVICE = "generic-phone-cpu"
LINKS = {"edge": "8mbit:20mbit/45ms@lte", "cloud": "200mbit/16ms"}
MODELS: Mapping[str, tuple[int, ...]] = {
    "ppocr-rec": (1, 3, 48, 160),
    "light-squeezenet": (1, 3, 224, 224),
    "ppocr-det": (1, 3, 160, 160),
    "light-shufflenet": (1, 3, 224, 224),
}


def _slowed(_: BlockGraph, costs: CostModel) -> CostModel:
    seconds = costs.seconds[:, :1] * np.array(SLOWDOWNS)
    return replace(costs, seconds=seconds, invocation_s=np.full(len(TIERS), 0.001))


def pool_of(name: str) -> tuple[Pool, State]:
    """The pool of a model, and the state that it was made for."""
    graph = onnx.load(str(pull(name)), load_external_data=False).graph
    stored = {each.name for each in graph.initializer}
    (graph_input,) = [each.name for each in graph.input if each.name not in stored]
    options = BuildOptions(shapes={graph_input: MODELS[name]}, costs=_slowed)
    devices = dict.fromkeys(TIERS, DEVICE)
    found = plan(pull(name), TIERS, devices=devices, links=LINKS, options=options, thresholds=False).planning
    return found.pool, found.problem.nominal
