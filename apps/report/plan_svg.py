"""A plan drawn as one SVG file: lanes with blocks and cuts, one request in time, and the baselines.

Self-contained (no scripts, fonts or links), readable on light and dark ground, the same bytes for the same report.
"""

import math
from itertools import pairwise

from flagsplit.apps.planning import PlanReport
from flagsplit.apps.report.figures import basis, split_ms
from flagsplit.apps.report.lanes import draw_lanes
from flagsplit.apps.report.svg import COMPUTING_COLOR, LINK_COLOR, TIER_COLORS, Canvas, shortened, width_of, wrapped
from flagsplit.apps.report.timeline import Span, serial_spans

_WIDTH = 980.0
_MARGIN = 20.0
_GUTTER_PX = 128.0
_ROW_PX = 18.0
_BASELINE_GUTTER_PX = 232.0
_MOST_SPANS = 2000


def draw_plan(report: PlanReport) -> str:
    """The drawing, as the text of an SVG file."""
    canvas = Canvas(_WIDTH)
    problem, plan = report.problem, report.plan
    kind = basis(plan)
    latency = plan.latency_s(problem.nominal) * 1e3
    title = f"{report.name}: {plan.name}, {latency:.4g} ms ({kind})"
    canvas.text(_MARGIN, 30, shortened(title, (_WIDTH - 2 * _MARGIN) * 0.7), "title")
    y = 50.0
    for line in _subtitle(report):
        for part in wrapped(line, _WIDTH - 2 * _MARGIN):
            canvas.text(_MARGIN, y, part, "dim")
            y += 16
    y = draw_lanes(canvas, y + 14, problem, plan)
    y = _draw_time(canvas, y + 40, report, kind)
    y = _draw_baselines(canvas, y + 40, report, kind)
    return canvas.finished(y + _MARGIN, title)


def _subtitle(report: PlanReport) -> list[str]:
    solution = report.planning.solution
    lines = [f"{solution.solver}: {'proven optimal' if solution.proven else 'within ' + _percent(solution.gap)}"]
    lines += [reason for reason in report.planning.reasons if reason.startswith("Do not split")]
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.2g} % of the optimum"


def _draw_time(canvas: Canvas, top: float, report: PlanReport, kind: str) -> float:
    """One request: a row for each tier and each direction of a link that is used."""
    spans = _joined(serial_spans(report.problem, report.plan))
    canvas.text(_MARGIN, top, f"One request, one thing after the other ({kind})", "head")
    rows = _rows(report, spans)
    left, room = _MARGIN + _GUTTER_PX, _WIDTH - _GUTTER_PX - 3 * _MARGIN
    total = spans[-1].end_s or 1.0
    bottom = top + 14 + _ROW_PX * len(rows)
    for tick in _ticks(total * 1e3):
        x = left + room * tick / (total * 1e3)
        canvas.line(x, top + 12, x, bottom)
        canvas.text(x, bottom + 14, f"{tick:g}", "small dim mid")
    canvas.text(left + room + 8, bottom + 14, "ms", "small dim")
    for row, (name, color) in rows.items():
        canvas.text(left - 8, top + 14 + _ROW_PX * row + 13, name, "small end")
        for span in spans:
            if span.row == name:
                x, end = (left + room * at / total for at in (span.start_s, span.end_s))
                said = f"{span.what}: {(span.end_s - span.start_s) * 1e3:.4g} ms"
                said += f" ({', '.join(span.carries[:5])})" if span.carries else ""
                y = top + 14 + _ROW_PX * row + 2
                canvas.rect(x, y, max(end - x, 1.0), _ROW_PX - 5, fill=color, title=said)
                _time_label(canvas, span, x, end, y)
    return bottom + 18


def _time_label(canvas: Canvas, span: Span, x: float, end: float, y: float) -> None:
    text = f"{(span.end_s - span.start_s) * 1e3:.3g} ms"
    if end - x > width_of(text) + 6:
        canvas.text(x + 4, y + 10.5, text, "small on")


def _joined(spans: tuple[Span, ...]) -> list[Span]:
    """Spans that follow each other in one row as one."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].row == span.row and not span.carries and not found[-1].carries:
            before = found.pop()
            count = int(before.what.split()[0]) if before.what.endswith(" steps") else 1
            span = Span(span.row, f"{count + 1} steps", before.start_s, span.end_s)
        found.append(span)
    return found[:_MOST_SPANS]


def _rows(report: PlanReport, spans: list[Span]) -> dict[int, tuple[str, str]]:
    """Name and color by row: tiers in line order, after each the links that lead on from it and back to it."""
    used = dict.fromkeys(span.row for span in spans)
    names: list[tuple[str, str]] = []
    for k, tier in enumerate(report.problem.tier_names):
        if tier in used:
            names.append((tier, TIER_COLORS[k % len(TIER_COLORS)]))
        for row in used:
            near, arrow, far = row.partition(" → ")
            ends = [report.problem.tier_names.index(end) for end in (near, far)] if arrow else []
            if ends and min(ends) == k:
                names.append((row, LINK_COLOR))
    return dict(enumerate(names))


def _ticks(most: float) -> list[float]:
    """Round values from 0 up to `most`, about eight of them."""
    raw = most / 8
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [round(i * step, 12) for i in range(int(most / step + 1e-9) + 1)]


def _draw_baselines(canvas: Canvas, top: float, report: PlanReport, kind: str) -> float:
    """Latency of the plan and of the baselines, computing before transfer."""
    canvas.text(_MARGIN, top, f"Compared: latency of one request ({kind})", "head")
    x = _WIDTH - 220
    for text, color in (("computing", COMPUTING_COLOR), ("transfer", LINK_COLOR)):
        canvas.rect(x, top - 10, 12, 12, fill=color)
        canvas.text(x + 17, top, text, "small")
        x += width_of(text) + 40
    bars = [(report.plan, "", True)]
    bars += [(each.plan, "" if each.allowed else "not allowed", each.allowed) for each in report.baselines]
    split = [split_ms(report.problem, plan) for plan, _, _ in bars]
    left, room = _MARGIN + _BASELINE_GUTTER_PX, _WIDTH - _BASELINE_GUTTER_PX - 2 * _MARGIN - 170
    most = max(sum(parts) for parts in split) or 1.0
    y = top + 12
    for (plan, note, allowed), parts in zip(bars, split, strict=True):
        css = "" if allowed else "off"
        ends = [left, left + room * parts[0] / most, left + room * sum(parts) / most]
        for (start, end), color in zip(pairwise(ends), (COMPUTING_COLOR, LINK_COLOR), strict=True):
            canvas.rect(start, y + 2, end - start, _ROW_PX - 5, css=css, fill=color)
        name = shortened(plan.name, _BASELINE_GUTTER_PX)
        canvas.text(left - 8, y + 13, name, "head end" if plan is report.plan else "small end")
        canvas.text(ends[-1] + 6, y + 13, f"{sum(parts):.4g} ms{', ' + note if note else ''}", "small")
        y += _ROW_PX
    return y
