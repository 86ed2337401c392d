"""How far the world must change before a decoder had better be divided otherwise, or not at all.

As in `flagsplit.splitter.thresholds`, but that all placements of a chain are known: along one knob each is a straight
line, so the first one to cross the chosen plan's is found by looking at all of them.
"""

import numpy as np
from numpy.typing import NDArray

from flagsplit.splitter.evaluate import Usage
from flagsplit.splitter.knobs import Knob, knobs_of, turned
from flagsplit.splitter.layer_plans import placements_of, plan_name
from flagsplit.splitter.limits import which_keep
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.rates import objective_rates
from flagsplit.splitter.thresholds import FARTHEST, Flip

_SAME = 1e-9


def layer_flips(problem: Problem, chosen: Plan) -> tuple[Flip, ...]:
    """The first flip in both directions of every knob; nothing where something else than the weighted sum decides."""
    sla = problem.sla
    if sla.objective.goal != "latency" or sla.mode is not None or sla.has_preferences:
        return ()
    rows = placements_of(problem)
    rows = rows[which_keep(Usage(problem, rows))]
    here = int(np.flatnonzero((rows == np.array(chosen.placement)).all(axis=1))[0])
    found = []
    for knob in knobs_of(problem):
        now, slope = _line(problem, knob, rows)
        for end in (FARTHEST, 1 / FARTHEST) if knob.kind == "bandwidth" else (1 / FARTHEST, FARTHEST):
            flip = _first(problem, knob, rows, here, (now, slope), end)
            if flip is not None:
                found.append(flip)
    return tuple(found)


def _line(problem: Problem, knob: Knob, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each placement costs now, and what it costs more for each further 1 of the knob's factor on costs."""
    values = []
    for x in (1.0, 2.0):
        there, state = turned(problem, knob, x)
        values.append(Usage(there, rows).measure(objective_rates(there, state)))
    return values[0], values[1] - values[0]


def _first(
    problem: Problem,
    knob: Knob,
    rows: NDArray[np.int64],
    here: int,
    lines: tuple[NDArray[np.float64], NDArray[np.float64]],
    end: float,
) -> Flip | None:
    now, slope = lines
    gains = (slope[here] - slope) * (end - 1)  # how much less than the chosen plan each costs more, all the way
    behind = now - now[here]
    crosses = gains > behind * (1 + _SAME) + _SAME * abs(now[here])
    crosses[here] = False
    if not crosses.any():
        return None
    share = np.where(crosses, behind / np.where(crosses, gains, 1.0), np.inf)
    nearest = float(share.min())
    ties = np.flatnonzero(share <= nearest * (1 + _SAME) + _SAME)
    best = int(ties[gains[ties].argmax()])
    x = 1 + nearest * (end - 1)
    placement = tuple(int(k) for k in rows[best])
    route = tuple(range(len(problem.tiers)))
    name = plan_name(problem.tier_names, placement)
    return Flip(knob, 1 / x if knob.kind == "bandwidth" else x, placement, route, name, exact=True)
