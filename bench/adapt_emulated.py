"""Re-partitioning by processes, slowed tiers and shaped links that follow a trace: the emulated form of `adapt.py`.

The session chooses by itself in one run; in the others it follows one plan each, on the same trace and with requests at
the same times. The oracle is, request by request, the best of those.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from adapt_sim import Outcome
from adapt_worlds import STEP_S, Trace, lte_like
from block_times import Profiled
from emulated import NETWORKS, SLOWDOWNS, TIERS, Line, Overheads, Way, measure_overheads

import flagsplit
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.pipeline import build
from flagsplit.apps.zoo import pull
from flagsplit.flagir import BlockGraph
from flagsplit.runtime.bundle import Bundle
from flagsplit.splitter.costs import CostModel

_PERIOD_S = 0.75
_ROUNDS = 5
_FAR = Way(200, 200, 8)


class _Replay:
    """Shapes the first link by a trace from now on, in a thread, until it is left."""

    def __init__(self, line: Line, trace: Trace) -> None:
        self._line, self._trace = line, trace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> float:
        self._thread.start()
        return time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        started, trace = time.monotonic(), self._trace
        for i, (up, down, rtt) in enumerate(zip(trace.up_mbit, trace.down_mbit, trace.rtt_ms, strict=True)):
            self._line.join_by((Way(up, down, rtt / 2), _FAR))
            if self._over.wait(max(0.0, started + (i + 1) * STEP_S - time.monotonic())):
                return


def emulate(name: str, shape: tuple[int, ...], seeds: Sequence[int], seconds: float) -> list[Outcome]:
    """One outcome for each trace."""
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle, inputs = _build(name, shape, measure_overheads(folder), folder)
        plans = [plan.name for plan in bundle.plans.pool.plans]
        with Line(bundle) as line:
            line.join_by(NETWORKS["lte"])
            for plan in plans:
                line.run(inputs, plan)
            for seed in seeds:
                trace = lte_like(seed, seconds)
                took = {plan: _follow(line, trace, inputs, plan) for plan in ("", *plans)}
                outcomes.append(_compare(took))
    return outcomes


def _build(name: str, shape: tuple[int, ...], overheads: Overheads, folder: Path) -> tuple[Bundle, Mapping[str, Any]]:
    """The bundle for the emulated tiers, by seconds that were measured block by block."""
    (folder / "profile").mkdir()
    profiled = Profiled(pull(name), shape, folder / "profile")
    seconds = profiled.seconds(_ROUNDS)

    def measured(graph: BlockGraph, costs: CostModel) -> CostModel:
        slowed = np.outer([seconds[block.name] for block in graph.blocks], [SLOWDOWNS[tier] for tier in TIERS])
        return replace(costs, seconds=slowed, invocation_s=np.full(len(TIERS), overheads.message_s))

    (graph_input,) = profiled.inputs
    options = BuildOptions(shapes={graph_input: shape}, costs=measured)
    build(pull(name), TIERS, folder / "x.flagsplit", links=overheads.links(NETWORKS["lte"]), options=options)
    return flagsplit.open(folder / "x.flagsplit", cache=folder / "cache"), profiled.inputs


def _follow(line: Line, trace: Trace, inputs: Mapping[str, Any], plan: str) -> dict[int, float]:
    """Milliseconds by the number of the request; those whose time passed while one before ran are left out."""
    took: dict[int, float] = {}
    with _Replay(line, trace) as started:
        while (now := time.monotonic() - started) < trace.seconds - 2:
            index = int(now / _PERIOD_S) + 1
            time.sleep(max(0.0, index * _PERIOD_S - now))
            took[index] = line.ask(inputs, plan).report.latency_ms
    return took


def _compare(took: Mapping[str, dict[int, float]]) -> Outcome:
    adaptive, fixed = took[""], {plan: each for plan, each in took.items() if plan}
    shared = set(adaptive).intersection(*fixed.values())
    best = [min(each[i] for each in fixed.values()) for i in shared]
    means = {plan: statistics.mean(each[i] for i in shared) for plan, each in fixed.items()}
    return Outcome(statistics.mean(adaptive[i] for i in shared), statistics.mean(best), means)
