"""Whether the plan that is chosen is the best there is: every plan of the pool and the usual baselines, run and timed.

Three slowed tiers on this host, joined by shaped links (`emulated.py`); seconds of blocks measured one by one
(`block_times.py`), the runtime's own costs on a model that computes nothing. A bundle is built for one network, and the
choice among its plans made for each of five by `Pool.choose`, from those figures and how fast the host runs the whole
graph just before. Plans take turns, the figure of each is a median.

Figures: `regret_geomean` and `regret_max`, the measured latency of the chosen plan over that of the best of all plans
of the pool and baselines, over `cases` networks and models; `prediction_error_median` and `_p90`, of all plans.
"""

import argparse
import json
import math
import platform
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from emulated import NETWORKS, NOMINAL, SLOWDOWNS, Line, Overheads, measure_overheads
from regret_models import LOSSY, Model

MODELS = {
    "ppocr-rec": (1, 3, 48, 160),
    "light-squeezenet": (1, 3, 224, 224),
    "ppocr-det": (1, 3, 160, 160),
    "light-shufflenet": (1, 3, 224, 224),
}
BAR = 1.05
_HOPELESS = 1.6
"""A plan that took so many times as long as the best after `_TRIALS` rounds is not measured again."""
_TRIALS = 2


@dataclass
class Case:
    """One model in one network.

    Attributes:
        pool: the plans that the build found.
        baselines: name in the pool by name of the baseline.
        chosen: name of the chosen plan.
        predicted_ms: by plan.
        took_ms: by plan, of every run.
    """

    model: str
    network: str
    pool: tuple[str, ...]
    baselines: Mapping[str, str]
    chosen: str
    predicted_ms: Mapping[str, float]
    took_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def measured_ms(self) -> dict[str, float]:
        """Median by plan."""
        return {plan: statistics.median(times) for plan, times in self.took_ms.items()}

    @property
    def regret(self) -> float:
        """The chosen plan over the best of all that ran."""
        measured = self.measured_ms
        return measured[self.chosen] / min(took for plan, took in measured.items() if plan != LOSSY)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plans = {
            plan: {"latency_ms": took, "predicted_ms": self.predicted_ms[plan], "runs": len(self.took_ms[plan])}
            for plan, took in sorted(self.measured_ms.items(), key=lambda item: item[1])
        }
        return {
            "model": self.model,
            "network": self.network,
            "chosen": self.chosen,
            "regret": self.regret,
            "pool": list(self.pool),
            "baselines": dict(self.baselines),
            "plans": plans,
            "basis": "emulated",
        }


def measure(model: Model, line: Line, network: str, rounds: int, draws: random.Random) -> Case:
    """Run every plan once, choose, then let the plans take turns, in another order each round."""
    line.join_by(NETWORKS[network])
    plans = list(model.plans_in(network))
    whole_s = []
    for plan in plans:
        line.run(model.inputs, plan)
        whole_s.append(model.profiled.whole_s())
    state = model.state(network, statistics.median(whole_s))
    case = Case(
        model=model.name,
        network=network,
        pool=tuple(plan.name for plan in model.offered.plans),
        baselines=model.baselines(network),
        chosen=model.offered.choose(state).plan.name,
        predicted_ms={plan: model.bundle.plans.pool.plan(plan).latency_s(state) * 1e3 for plan in plans},
    )
    for at in range(rounds):
        if at >= _TRIALS:
            measured = case.measured_ms
            plans = [plan for plan in plans if plan == LOSSY or measured[plan] <= _HOPELESS * min(measured.values())]
            plans += [] if case.chosen in plans else [case.chosen]
        for plan in draws.sample(plans, len(plans)):
            case.took_ms.setdefault(plan, []).append(line.run(model.inputs, plan).report.latency_ms)
    return case


def run(models: Sequence[str], networks: Sequence[str], rounds: int) -> tuple[list[Case], Overheads]:
    """All cases."""
    draws = random.Random(0)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        overheads = measure_overheads(folder)
        for name in models:
            model = Model(name, MODELS[name], overheads, networks, folder / name)
            with Line(model.bundle) as line:
                cases += [measure(model, line, network, rounds, draws) for network in networks]
    return cases, overheads


def figures_of(cases: Sequence[Case]) -> dict[str, float]:
    """The figures of this program."""
    errors = [abs(case.predicted_ms[plan] - took) / took for case in cases for plan, took in case.measured_ms.items()]
    return {
        "regret_geomean": math.exp(statistics.mean(math.log(case.regret) for case in cases)),
        "regret_max": max(case.regret for case in cases),
        "cases": len(cases),
        "prediction_error_median": statistics.median(errors),
        "prediction_error_p90": float(np.quantile(errors, 0.9)),
    }


def table_of(case: Case) -> str:
    """What was measured of one case, the fastest first."""
    names: dict[str, list[str]] = {}
    for what, plan in case.baselines.items():
        names.setdefault(plan, []).append(what)
    lines = [f"{case.model} on {case.network}: chosen {case.chosen}, {case.regret:.3f} x the best"]
    for plan, took in sorted(case.measured_ms.items(), key=lambda item: item[1]):
        marks = ["CHOSEN"] if plan == case.chosen else []
        marks += ["pool"] if plan in case.pool else []
        label = ", ".join(marks + [what for what in names.get(plan, []) if what != plan])
        lines.append(f"  {plan:22}{took:10.1f} ms emulated{case.predicted_ms[plan]:10.1f} ms predicted  {label}")
    return "\n".join(lines)


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="two models in two networks, fewer runs")
    options = parser.parse_args()
    models, networks, rounds = list(MODELS), list(NETWORKS), 9
    if options.quick:
        models, networks, rounds = models[:2], ["wifi", "lte"], 5
    cases, overheads = run(models, networks, rounds)
    figures = figures_of(cases)
    if options.json:
        conditions = {
            "machine": platform.machine(),
            "threads": 1,
            "rounds": rounds,
            "slowdowns": SLOWDOWNS,
            "bar": BAR,
            "message_ms": overheads.message_s * 1e3,
            "ns_per_byte": overheads.byte_s * 1e9,
            "nominal": NOMINAL,
        }
        data = [case.to_data() for case in cases]
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "emulated", "table": data}))
        return
    print("\n\n".join(table_of(case) for case in cases), end="\n\n")
    for key, value in figures.items():
        print(f"{key:40} {value:.4g}")


if __name__ == "__main__":
    main()
