"""A small model whose values go every way that there is, and bundles of it with codecs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from tests.apps import models

import flagsplit
from flagsplit.apps.extra_plans import add_plans
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.tier_parts import ResidencyChoice
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.sla import parse_sla

TIERS = ("phone", "edge", "cloud")
CODECS = ("fp16", "u8_per_channel", "u8", "u4_per_channel")
WIDTH = 16
# Blocks are v, a (with p), b, c (with d), q. x and v are read at two places; b is an answer and read by c.
_TEXT = f"""<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 5, {WIDTH}] x) => (float[N, 5, {WIDTH}] p, float[N, 5, {WIDTH}] q, float[N, 5, {WIDTH}] b) {{
    [v] v = MatMul(x, wv)
    [a] a = MatMul(v, wa)
    [p] p = Softmax(a)
    [b] b = MatMul(v, wb)
    [c] c = MatMul(b, wc)
    [d] d = Add(c, x)
    [q] q = MatMul(d, wq)
}}"""
PLACES: dict[str, Sequence[int]] = {
    # v, a, b, c, q: x goes up to two tiers, v both ways, b past a tier that only relays it, and d comes down.
    "every-way": (1, 2, 0, 2, 1),
    # b goes up encoded, and down as it is.
    "up": (0, 1, 1, 2, 2),
    "down": (2, 2, 1, 1, 0),
    "far": (0, 2, 2, 2, 0),
}


def write_model(path: Path, names: Mapping[str, str] | None = None) -> Path:
    """The model, with other names for some of its values."""
    model: onnx.ModelProto = onnx.parser.parse_model(_TEXT)
    names = names or {}
    for node in model.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]
    for info in (*model.graph.input, *model.graph.output):
        info.name = names.get(info.name, info.name)
    rng = np.random.default_rng(5)
    for name in ("wv", "wa", "wb", "wc", "wq"):
        array = np.asarray(rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return models.save(model, path)


def _placed(problem: Problem) -> dict[str, Sequence[int]]:
    heads = ["".join(block.nodes)[0] for block in problem.graph.blocks]
    assert heads == list("vabcq")
    return PLACES


def build_with(
    folder: Path,
    codec: str,
    *,
    routes: dict[str, tuple[int, ...]] | None = None,
    order: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    residency: ResidencyChoice = "auto",
    targets: Mapping[str, tuple[str, ...]] | None = None,
) -> Bundle:
    """A bundle with the plans of `PLACES`, one codec wherever it is allowed.

    Args:
        folder: for the model and the bundle.
        codec: its name, or "none".
        routes: of some plans, by name.
        order: names of the only plans, the most wanted first.
        names: other names for values of the model.
        residency: whether the bundle has atoms.
        targets: of tiers, by name.
    """
    path = folder / f"{codec}.flagsplit"
    with mock.patch("flagsplit.apps.assembly.add_plans", partial(_add_plans, routes or {}, order)):
        build(
            write_model(folder / "lossy.onnx", names),
            TIERS,
            path,
            links={"edge": "100kbit/1ms", "cloud": "100kbit/1ms"},
            sla=parse_sla({"accuracy": {"every_cut": {"codecs": [codec]}}}),
            options=BuildOptions(
                shapes={(names or {}).get("x", "x"): (2, 5, WIDTH)},
                extra_plans=_placed,
                residency=residency,
                targets=targets or {},
            ),
        )
    return flagsplit.open(path)


def _add_plans(
    routes: dict[str, tuple[int, ...]], order: Sequence[str], planning: PlanningResult, extra: Any
) -> PlanningResult:
    made = add_plans(planning, extra)
    wanted = order or [plan.name for plan in made.pool.plans]
    plans = [replace(plan, route=routes.get(plan.name, ())) for plan in map(made.pool.plan, wanted)]
    bias = [1e3 * at for at in range(len(plans))] if order else made.pool.bias
    return replace(made, pool=replace(made.pool, plans=tuple(plans), bias=tuple(bias)))


def inputs_of(number: int, batch: int = 2) -> dict[str, models.Array]:
    x: models.Array = np.random.default_rng(number).standard_normal((batch, 5, WIDTH)).astype(np.float32)
    return {"x": x}
