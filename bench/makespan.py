"""What overlap buys one request: the families of `flagsplit.splitter.testing`, modelled on two lines of tiers.

Figures by family and line, in milliseconds: `serial_`, the best serial latency; `serial_overlapped_`, the makespan of
that plan when tiers and links work at the same time, with the runtime's messages; `makespan_`, the least makespan with
one message per tensor, `bound_`, what is proven that none is below, and `messages_`, what the runtime's messages make
of that placement. `solve_s_max` is the longest search, `unproven` counts those that ended without a proof, and
`gain_max` is the largest share of the serial latency that the least makespan saves.
"""

import argparse
import json
import platform

from flagsplit.flagir.blockgraph import BlockGraph
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.makespan import Makespan, least_makespan
from flagsplit.splitter.problem import make_problem
from flagsplit.splitter.simulator import simulate_request
from flagsplit.splitter.solvers import solve
from flagsplit.splitter.testing import cnn, line, transformer, two_tower, unet

LINES = {
    "wifi": (("generic-phone-cpu", "generic-edge-cpu", "t4"), ("wifi", "wan")),
    "gigabit": (("generic-phone-cpu", "generic-phone-cpu", "generic-edge-cpu"), ("1gbit/1ms", "1gbit/1ms")),
}
MS_PER_S = 1e3


def graphs(*, quick: bool) -> list[BlockGraph]:
    """The families at their default sizes, and larger ones unless it should be quick."""
    small = [cnn(), unet(), two_tower(), transformer()]
    return small if quick else [*small, cnn(10, 9), two_tower(20), transformer(40)]


def measure(graph: BlockGraph, line_name: str, seconds: float) -> tuple[dict[str, float], Makespan]:
    """Figures of one graph on one line, by short name, and the search."""
    devices, names = LINES[line_name]
    tiers, links = line(*devices, links=names, catalogue=load_catalogue())
    problem = make_problem(graph, tiers, links)
    serial = solve(problem)
    least = least_makespan(problem, seconds=seconds, hint=serial.placement)
    figures = {
        "serial": serial.objective,
        "serial_overlapped": simulate_request(problem, serial.placement, problem.nominal).makespan_s,
        "makespan": least.makespan_s,
        "bound": least.bound_s,
        "messages": simulate_request(problem, least.placement, problem.nominal).makespan_s,
    }
    return {name: value * MS_PER_S for name, value in figures.items()}, least


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="default sizes only")
    options = parser.parse_args()
    seconds = 10.0 if options.quick else 60.0
    figures: dict[str, float] = {"solve_s_max": 0.0, "unproven": 0, "gain_max": 0.0}
    for name in LINES:
        for graph in graphs(quick=options.quick):
            found, least = measure(graph, name, seconds)
            label = f"{graph.name}{len(graph.blocks)}_{name}"
            figures |= {f"{key}_{label}_ms": value for key, value in found.items()}
            figures["solve_s_max"] = max(figures["solve_s_max"], least.seconds)
            figures["unproven"] += not least.proven
            figures["gain_max"] = max(figures["gain_max"], 1 - found["makespan"] / found["serial"])
    if options.json:
        conditions = {"machine": platform.machine(), "workers": 1, "limit_s": seconds}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "modelled"}))
    else:
        for key, value in figures.items():
            print(f"{key:48} {value:.4g}")


if __name__ == "__main__":
    main()
