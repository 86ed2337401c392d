"""How near re-partitioning comes to an oracle that knows the network's future.

Modelled (the default): the runtime's own world model, chooser and probes on a simulated line (`adapt_sim.py`) whose
first link follows traces like those of LTE and shapes made to trip it up (`adapt_worlds.py`), with the pools of real
models (`adapt_pools.py`). Emulated (`--emulated`): processes, slowed tiers and shaped links (`emulated.py`) that follow
the same traces; there the oracle is, request by request, the best of all plans that were run on the same trace.

Figures: `over_oracle`, the mean latency over that of the oracle, mean over all traces, and `_p90` and `_max` of them;
the same for the best fixed plan in hindsight, all on the phone and all in the cloud; of the adversarial shapes by name.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from adapt_pools import LINKS, MODELS, SLOWDOWNS, pool_of
from adapt_sim import Adaptive, Line, Outcome, play
from adapt_worlds import Trace, adversarial, lte_like

from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State

BAR = 1.10
FIRST_SEED = 7000
"""Traces from here on were never looked at while the choosing was tuned; that used those from 0 on."""
_PHONES = (1.0, 2.5)
"""The phone as it is, and so many times slower: where the network pays, and where it must."""

Case = tuple[Pool, State, str, Trace, int]


def slower_phone(pool: Pool, factor: float) -> Pool:
    """The same plans where the first tier takes longer."""

    def slowed(seconds: tuple[float, ...]) -> tuple[float, ...]:
        return (seconds[0] * factor, *seconds[1:])

    plans = [replace(p, features=replace(p.features, tier_seconds=slowed(p.features.tier_seconds))) for p in pool.plans]
    return replace(pool, plans=tuple(plans))


def cases_of(models: Sequence[str], seeds: Sequence[int], shapes: Sequence[str], seconds: float) -> list[Case]:
    """Every model, with each phone, on every trace."""
    found: list[Case] = []
    for name in models:
        built, nominal = pool_of(name)
        for factor in _PHONES:
            pool = slower_phone(built, factor)
            found += [(pool, nominal, "", lte_like(seed, seconds), seed) for seed in seeds]
            found += [(pool, nominal, shape, adversarial(seconds)[shape], 5) for shape in shapes]
    return found


def _play(case: Case) -> Outcome:
    pool, nominal, _, trace, seed = case
    return play(Line(trace, seed), pool, nominal)


def model(cases: Sequence[Case]) -> list[Outcome]:
    """All cases, on two processes."""
    with ProcessPoolExecutor(2) as workers:
        return list(workers.map(_play, cases, chunksize=2))


def ratios_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """What the adaptive choice and the fixed plans take, over the oracle."""
    over = [each.adaptive_ms / each.oracle_ms for each in outcomes]
    return {
        "over_oracle": statistics.mean(over),
        "over_oracle_p90": float(np.quantile(over, 0.9)),
        "over_oracle_max": max(over),
        "best_fixed_over_oracle": statistics.mean(min(each.fixed_ms.values()) / each.oracle_ms for each in outcomes),
        "all_phone_over_oracle": statistics.mean(each.fixed_ms["all-phone"] / each.oracle_ms for each in outcomes),
        "all_cloud_over_oracle": statistics.mean(each.fixed_ms["all-cloud"] / each.oracle_ms for each in outcomes),
        "traces": len(outcomes),
    }


def figures_of(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of this program."""
    lte = [(case, each) for case, each in zip(cases, outcomes, strict=True) if not case[2]]
    figures = ratios_of([each for _, each in lte])
    figures |= {
        "switches_per_minute": statistics.mean(60 * each.switches / case[3].seconds for case, each in lte),
        "stalls_per_minute": statistics.mean(60 * each.stalls / case[3].seconds for case, each in lte),
        "probe_share": statistics.mean(each.probe_share for each in outcomes),
        "probe_share_max": max(each.probe_share for each in outcomes),
    }
    for shape in dict.fromkeys(case[2] for case in cases if case[2]):
        of_shape = [each for case, each in zip(cases, outcomes, strict=True) if case[2] == shape]
        name = shape.replace(" ", "_")
        figures[f"{name}_over_oracle"] = statistics.mean(e.adaptive_ms / e.oracle_ms for e in of_shape)
        figures[f"{name}_best_fixed_over_oracle"] = statistics.mean(
            min(e.fixed_ms.values()) / e.oracle_ms for e in of_shape
        )
    return figures


def choosing_us(pool: Pool, nominal: State) -> tuple[float, float]:
    """Median and 99th percentile of a choice, the state included, in microseconds of this thread's CPU time."""
    adaptive = Adaptive(Line(lte_like(1, 60.0), 1), pool, nominal)
    now, times = 30.0, []
    adaptive.until(now)
    for _ in range(4000):
        started = time.thread_time_ns()
        adaptive.chooser.choose(now, (True, True, True))
        times.append((time.thread_time_ns() - started) / 1e3)
        now += 1e-3
    return float(np.quantile(times, 0.5)), float(np.quantile(times, 0.99))


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="two models, fewer and shorter traces")
    parser.add_argument("--emulated", action="store_true", help="processes and shaped links in place of a simulation")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the traces, which count up from there")
    parser.add_argument("--traces", type=int, help="how many traces for each model")
    options = parser.parse_args()
    conditions: dict[str, Any] = {"machine": platform.machine(), "bar": BAR, "slowdowns": SLOWDOWNS, "links": LINKS}
    if options.emulated:
        from adapt_emulated import emulate

        models, seconds, count = (["ppocr-rec"], 8.0, 1) if options.quick else (["ppocr-rec", "ppocr-det"], 60.0, 3)
        seeds = range(options.first_seed, options.first_seed + (options.traces or count))
        outcomes = [each for name in models for each in emulate(name, MODELS[name], seeds, seconds)]
        figures = ratios_of(outcomes)
    else:
        models = list(MODELS)[:2] if options.quick else list(MODELS)
        seconds, count = (80.0, 4) if options.quick else (200.0, 12)
        seeds = range(options.first_seed, options.first_seed + (options.traces or count))
        shapes = list(adversarial(1.0))
        cases = cases_of(models, seeds, shapes[:1] + shapes[3:4] if options.quick else shapes, seconds)
        outcomes = model(cases)
        figures = figures_of(cases, outcomes)
        median_us, p99_us = choosing_us(*cases[-1][:2])
        conditions |= {"choose_us_p50_measured": median_us, "choose_us_p99_measured": p99_us}
    conditions |= {"seconds": seconds, "first_seed": seeds.start, "seeds": len(seeds)}
    basis = "emulated" if options.emulated else "modelled"
    if options.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": basis}))
        return
    for key, value in figures.items():
        print(f"{key:40} {value:.4g} {basis if 'over' in key else ''}")
    print(conditions)


if __name__ == "__main__":
    main()
