"""The placement as lanes: a lane for each tier, blocks in topological order as bars, arrows for what crosses.

A bar is as wide as its block takes on its tier. Runs of blocks on one tier are merged where there are more than a
reader can tell apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flagsplit.apps.cli.output import size_text
from flagsplit.apps.report.svg import TIER_COLORS, Canvas, shortened, width_of
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.reasons import main_operator

_MOST_BARS = 60
_MOST_ARROWS = 40
_LEAST_PX = 3.0
_BAR_PX = 30.0
_GAP_PX = 46.0
_LABEL_ROWS = 3
_LABEL_PX = 13.0
_GUTTER_PX = 148.0


@dataclass(frozen=True)
class Run:
    """Consecutive blocks on one tier: indices from `first` to `last`, seconds in all."""

    tier: int
    first: int
    last: int
    seconds: float


@dataclass(frozen=True)
class Crossing:
    """What goes from one run to another: the request itself is the run before the first and after the last."""

    start: int
    end: int
    from_tier: int
    to_tier: int
    values: tuple[str, ...]
    size_bytes: float
    codecs: tuple[str, ...]

    @property
    def label(self) -> str:
        """For people."""
        coded = ", ".join(codec for codec in self.codecs if codec != "none")
        many = f"{len(self.values)} tensors, " if len(self.values) > 1 else ""
        return f"{many}{size_text(self.size_bytes)}{f' as {coded}' if coded else ''}"


def runs_of(problem: Problem, plan: Plan, most: int = _MOST_BARS) -> list[Run]:
    """The plan's blocks in order, the shortest neighbors on one tier merged until there are few enough."""
    seconds = problem.costs.seconds
    runs = [Run(k, i, i, float(seconds[i, k])) for i, k in enumerate(plan.placement)]
    while len(runs) > most:
        pairs = [i for i in range(len(runs) - 1) if runs[i].tier == runs[i + 1].tier]
        if not pairs:
            break
        # Many at once, so that a graph of thousands of blocks does not take thousands of passes.
        pairs.sort(key=lambda i: (runs[i].seconds + runs[i + 1].seconds, i))
        chosen: set[int] = set()
        for i in pairs[: max(1, (len(runs) - most + 1) // 2)]:
            if i - 1 not in chosen and i + 1 not in chosen:
                chosen.add(i)
        merged: list[Run] = []
        for i, run in enumerate(runs):
            if i - 1 in chosen:
                before = merged.pop()
                run = Run(run.tier, before.first, run.last, before.seconds + run.seconds)
            merged.append(run)
        runs = merged
    return runs


def crossings_of(problem: Problem, plan: Plan, runs: Sequence[Run]) -> list[Crossing]:
    """What crosses between runs on different tiers, and from and to the request, the largest first."""
    run_of = {block: i for i, run in enumerate(runs) for block in range(run.first, run.last + 1)}
    coded = {(cut.value, cut.to_tier > cut.from_tier): cut.codec for cut in plan.cuts}
    found: dict[tuple[int, int, int, int], list[tuple[str, float, str]]] = {}
    for value in problem.graph.values:
        made = 0 if value.producer < 0 else plan.placement[value.producer]
        start = -1 if value.producer < 0 else run_of[value.producer]
        ends = {plan.placement[c]: run_of[c] for c in reversed(value.consumers)}
        if value.is_output and made != 0:
            ends.setdefault(0, len(runs))
        for tier, end in ends.items():
            if tier != made:
                codec = coded.get((value.name, tier > made), "none")
                size = value.size_bytes if codec == "none" else value.codec_bytes[codec]
                found.setdefault((start, end, made, tier), []).append((value.name, float(size), codec))
    crossings = [
        Crossing(
            *key,
            values=tuple(v[0] for v in values),
            size_bytes=sum(v[1] for v in values),
            codecs=tuple(sorted({v[2] for v in values})),
        )
        for key, values in found.items()
    ]
    return sorted(crossings, key=lambda c: (-c.size_bytes, c.start, c.end))


def draw_lanes(canvas: Canvas, top: float, problem: Problem, plan: Plan) -> float:
    """Draw the lanes from `top` down; returns where they end."""
    runs = runs_of(problem, plan)
    left, room = _GUTTER_PX, canvas.width - _GUTTER_PX - 40
    total = sum(run.seconds for run in runs) or 1.0
    spare = max(room - _LEAST_PX * len(runs), 0.0)
    edges = [left]
    for run in runs:
        edges.append(edges[-1] + min(_LEAST_PX, room / len(runs)) + spare * run.seconds / total)
    lanes = [top + k * (_BAR_PX + _GAP_PX) for k in range(len(problem.tiers))]
    for k, (tier, y) in enumerate(zip(problem.tiers, lanes, strict=True)):
        canvas.rect(left - 8, y, room + 16, _BAR_PX, css="lane")
        canvas.text(left - 16, y + 13, tier.name, "head end")
        canvas.text(left - 16, y + 27, shortened(tier.device.name, _GUTTER_PX - 20), "small dim end")
        if k not in plan.placement:
            canvas.text(left + 4, y + 19, "runs nothing", "small dim")
    for i, run in enumerate(runs):
        _draw_run(canvas, problem, run, edges[i], edges[i + 1], lanes[run.tier])
    _draw_crossings(canvas, crossings_of(problem, plan, runs)[:_MOST_ARROWS], edges, lanes)
    return lanes[-1] + _BAR_PX


def _draw_run(canvas: Canvas, problem: Problem, run: Run, x: float, end: float, y: float) -> None:
    blocks = problem.graph.blocks[run.first : run.last + 1]
    name = main_operator(blocks[0]) if len(blocks) == 1 else f"{len(blocks)} blocks"
    said = f"{blocks[0].name}{'' if len(blocks) == 1 else f' to {blocks[-1].name}'}: {run.seconds * 1e3:.4g} ms"
    gap = 1.0 if end - x > 2 else 0.0
    canvas.rect(x, y, end - x - gap, _BAR_PX, fill=TIER_COLORS[run.tier % len(TIER_COLORS)], title=said)
    if end - x > width_of(name) + 6:
        canvas.text(x + 4, y + 19, name, "small on")


def _draw_crossings(
    canvas: Canvas, crossings: Sequence[Crossing], edges: Sequence[float], lanes: Sequence[float]
) -> None:
    taken: list[tuple[float, float, float]] = []
    for each in sorted(crossings, key=lambda c: (c.start, c.end)):
        down = each.to_tier > each.from_tier
        x1 = edges[each.start + 1] - (2 if each.start >= 0 else 0)
        x2 = edges[min(each.end, len(edges) - 1)] + (2 if each.end < len(edges) - 1 else 8)
        y1 = lanes[each.from_tier] + (_BAR_PX if down else 0)
        y2 = lanes[each.to_tier] + (0 if down else _BAR_PX)
        bend = y2 - 10 if down else y2 + 10
        said = f"{', '.join(each.values[:5])}{', ...' if len(each.values) > 5 else ''}: {each.label}"
        canvas.arrow([(x1, y1), (x1, bend), (x2, bend), (x2, y2)], said)
        gap = y1 if down else lanes[each.from_tier] - _GAP_PX
        _label(canvas, each.label, (min(x1, x2), max(x1, x2)), gap, taken)


def _label(
    canvas: Canvas, text: str, arrow: tuple[float, float], gap_top: float, taken: list[tuple[float, float, float]]
) -> None:
    """A label beside an arrow, in the first free row of a gap between lanes; none where all are taken."""
    wide = width_of(text)
    x = arrow[1] + 6
    if x + wide > canvas.width - 8:
        x = arrow[0] - 6 - wide
    for row in range(_LABEL_ROWS):
        y = gap_top + 12 + row * _LABEL_PX
        if all(y != ty or x + wide + 6 < start or x > end + 6 for start, end, ty in taken):
            taken.append((x, x + wide, y))
            canvas.text(x, y, text, "small")
            return
