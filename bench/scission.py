"""The splitter against exhaustive search on the per-layer measurements that were published with Scission (UCC 2020).

The data file holds seconds of each block of 18 networks on five hosts and the links between them under two networks;
its objective and its terms are stated in it. For each network, model and constraint (`free`, `every tier used`, `no
cloud`, `no device`) the best hosts and cuts are found twice: by trying everything, as Scission does, and by
`flagsplit.splitter.solve` for each choice of hosts and tiers. Figures: `cases`, `mismatches` of the optimum, and
`speedup_median`, how much longer the exhaustive search takes (`speedup_total` over all cases: it is quick on the short
models and slow on the long ones); the share of cases that split at all is `split_share`.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flagsplit.flagir.blockgraph import GRAPH_INPUT, Block, BlockGraph, BlockValue
from flagsplit.splitter.costs import Tier
from flagsplit.splitter.devices import Catalogue, load_catalogue
from flagsplit.splitter.links import Link
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import solve

ORDER = ("device", "edge", "cloud")
CONSTRAINTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "free": [s for n in (1, 2, 3) for s in itertools.combinations(ORDER, n)],
    "every tier used": [ORDER],
    "no cloud": [("device",), ("edge",), ("device", "edge")],
    "no device": [("edge",), ("cloud",), ("edge", "cloud")],
}
"""The sets of tiers that each constraint leaves to be used."""

LINES: Mapping[str, Sequence[tuple[tuple[str, ...], SLA]]] = {
    "free": [
        (("device", "edge"), SLA()),
        (("device", "cloud"), SLA()),
        (ORDER, SLA(use_tiers=("edge", "cloud"))),
    ],
    "every tier used": [(ORDER, SLA(use_tiers=ORDER))],
    "no cloud": [(("device", "edge"), SLA())],
    "no device": [
        (ORDER, SLA(use_tiers=("edge",), forbid_tiers=("device",))),
        (("device", "cloud"), SLA(forbid_tiers=("device",))),
    ],
}
"""The same as lines with policies. The device goes to the cloud directly where the edge runs nothing, so that is a line
of its own; the request starts at the device in any case."""

INPUT_BYTES = 150_000
_NO_WAY_BACK = 1e6
_SAME = 1e-9


@dataclass(frozen=True)
class Case:
    """One network, model and constraint; links by the hosts that they join."""

    blocks: Sequence[Mapping[str, Any]]
    hosts: Mapping[str, Sequence[str]]
    links: Mapping[tuple[str, str], tuple[float, float]]
    constraint: str


def cases_of(data: Mapping[str, Any]) -> Iterator[Case]:
    """Every case of the data."""
    hosts = {tier: [host for host, kind in data["hosts"].items() if kind == tier] for tier in ORDER}
    for network in data["networks"].values():
        links = {
            (link["from"], link["to"]): (link["ping_ms"] / 1e3, 8 / (link["mbit_per_s"] * 1e6)) for link in network
        }
        for blocks in data["models"].values():
            for constraint in CONSTRAINTS:
                yield Case(blocks, hosts, links, constraint)


def exhaustive(case: Case) -> float:
    """Seconds of the best of all choices of hosts and cuts."""
    sizes = [INPUT_BYTES, *(block["output_size_bytes"] for block in case.blocks)]
    n, best = len(case.blocks), math.inf
    for used in CONSTRAINTS[case.constraint]:
        for hosts in itertools.product(*(case.hosts[tier] for tier in used)):
            for cuts in itertools.combinations(range(1, n), len(used) - 1):
                ends = [0, *cuts, n]
                total, here = 0.0, case.hosts["device"][0]
                for host, start, end in zip(hosts, ends, ends[1:], strict=False):
                    if host != here:
                        wait, per_byte = case.links[here, host]
                        total += wait + sizes[start] * per_byte
                    total += sum(block["seconds"][host] for block in case.blocks[start:end])
                    here = host
                best = min(best, total)
    return best


def problems_of(case: Case, catalogue: Catalogue) -> list[Problem]:
    """A placement problem for each line and choice of hosts."""
    graph, device = graph_of(case), catalogue.device("generic-edge-cpu")
    found = []
    for names, sla in LINES[case.constraint]:
        for hosts in itertools.product(*(case.hosts[name] for name in names)):
            ways = [case.links[pair] for pair in itertools.pairwise(hosts)]
            links = [Link("given", 1 / per_byte, 1 / per_byte, 0.0, "wired") for _, per_byte in ways]
            problem = make_problem(graph, [Tier(name, device) for name in names], links, sla)
            seconds = np.array([[block["seconds"][host] for host in hosts] for block in case.blocks])
            costs = replace(problem.costs, seconds=seconds, invocation_s=np.zeros(len(names)))
            nominal = replace(
                problem.nominal,
                down_s_per_byte=(_NO_WAY_BACK,) * len(links),
                up_s_per_message=tuple(wait for wait, _ in ways),
                down_s_per_message=(0.0,) * len(links),
            )
            found.append(replace(problem, costs=costs, nominal=nominal))
    return found


def graph_of(case: Case) -> BlockGraph:
    """The model as a chain. Its answer weighs nothing: it stays where it was made."""
    n = len(case.blocks)
    blocks = [Block(i, f"block{i}", (f"block{i}",), ("Block",), {}, 0, 0, 0, 0) for i in range(n)]
    values = [BlockValue("input", INPUT_BYTES, GRAPH_INPUT, (0,))]
    for i, block in enumerate(case.blocks):
        last = i == n - 1
        values.append(BlockValue(f"v{i}", 0 if last else block["output_size_bytes"], i, () if last else (i + 1,), last))
    return BlockGraph("model", tuple(blocks), tuple(values), {})


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the published measurements, JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    data, catalogue = json.loads(options.data.read_text()), load_catalogue()
    mismatches = cases = split = 0
    speedups, total_s = [], [0.0, 0.0]
    for case in cases_of(data):
        problems = problems_of(case, catalogue)
        started = time.perf_counter()
        found = min((solve(problem) for problem in problems), key=lambda solution: solution.objective)
        ours_s = time.perf_counter() - started
        started = time.perf_counter()
        best = exhaustive(case)
        theirs_s = time.perf_counter() - started
        speedups.append(theirs_s / ours_s)
        total_s = [total_s[0] + ours_s, total_s[1] + theirs_s]
        mismatches += abs(found.objective - best) > _SAME * best or not found.proven
        split += case.constraint == "free" and len(set(found.placement)) > 1
        cases += 1
    figures = {
        "cases": cases,
        "mismatches": mismatches,
        "speedup_median": statistics.median(speedups),
        "speedup_min": min(speedups),
        "speedup_max": max(speedups),
        "speedup_total": total_s[1] / total_s[0],
        "split_share": split / (cases / len(CONSTRAINTS)),
    }
    if options.json:
        conditions = {"machine": platform.machine(), "data": data["source"]}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "modelled"}))
    else:
        for key, value in figures.items():
            print(f"{key:16} {value:.4g}")


if __name__ == "__main__":
    main()
