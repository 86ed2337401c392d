"""Pages as tables, the same in a terminal and in the live view. Texts from pages are never taken for markup."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flagsplit.apps.top.fetch import Page
from flagsplit.apps.top.model import Decision, Segment, Stats
from flagsplit.apps.top.units import UNKNOWN, duration, ms, plain, size, spark

Row = Sequence[object]
MOST_DECISIONS = 20
_STYLES = {"up": "green", "ready": "green", "down": "red", "refused": "red", "draining": "yellow", "unreachable": "red"}


def processes(pages: Sequence[Page]) -> RenderableType:
    """A row for each page, also for those that did not come."""
    columns = ("tier", "kind", "state", "up for", "req/s", "p50 ms", "p99 ms", "held", "queue", "RSS", "CPU s", "at")
    return _table(columns, [_process(page) for page in pages], left=3, last_left=True)


def _process(page: Page) -> Row:
    stats = page.stats
    if stats is None:
        return (UNKNOWN, UNKNOWN, Text(plain(page.error, 60), "red"), *[UNKNOWN] * 8, plain(_short(page.url)))
    state = _state("ready" if stats.ready else stats.not_ready)
    requests, process = stats.requests, stats.process
    return (
        plain(stats.tier),
        stats.kind,
        state,
        duration(stats.uptime_s),
        f"{requests.rate_per_s:.3g}",
        ms(requests.latency_ms.p50),
        ms(requests.latency_ms.p99),
        stats.flights,
        stats.queue + stats.waiting,
        size(process.rss_bytes),
        UNKNOWN if process.cpu_s is None else f"{process.cpu_s:.1f}",
        plain(_short(page.url)),
    )


def tiers(pages: Sequence[Page]) -> RenderableType:
    """What each session and worker sees of the tiers around it."""
    rows: list[Row] = []
    for stats in _known(pages):
        for name in dict.fromkeys((*stats.tiers, *stats.estimates.tiers)):
            tier, estimate = stats.tiers.get(name), stats.estimates.tiers.get(name)
            rows.append(
                (
                    plain(stats.tier),
                    plain(name),
                    _state(tier.state) if tier else "itself" if name == stats.tier else UNKNOWN,
                    UNKNOWN if estimate is None or estimate.slowdown is None else f"{estimate.slowdown:.3g} x",
                    UNKNOWN if estimate is None or estimate.queue is None else estimate.queue,
                    ms(estimate.wait_ms if estimate else None),
                    size(estimate.held_bytes if estimate else None),
                    plain(tier.reason if tier else "", 60),
                )
            )
    columns = ("from", "tier", "state", "slow-down", "queue", "wait ms", "held", "why")
    return _table(columns, rows, left=3, last_left=True)


def plans(pages: Sequence[Page]) -> RenderableType:
    """The plan in use and the runner-up of each session."""
    rows: list[Row] = []
    for stats in _known(pages, "session"):
        figures = {each.plan: each.predicted_ms for each in stats.plans}
        names = list(dict.fromkeys(([stats.plan] if stats.plan else []) + list(figures)))[:2]
        for role, name in zip(("in use", "runner-up"), names, strict=False):
            rows.append((plain(stats.tier), role, plain(name), ms(figures.get(name))))
    return _table(("session", "", "plan", "predicted ms"), rows, left=3)


def links(pages: Sequence[Page]) -> RenderableType:
    """Estimates of links, and what crossed them."""
    rows: list[Row] = []
    for stats in _known(pages):
        crossed = {link.tier: link for link in stats.links}
        for each in stats.estimates.links:
            moved = crossed.get(each.target) if each.source == stats.tier else crossed.get(each.source)
            out = each.source == stats.tier
            bytes_ = None if moved is None else moved.bytes_out if out else moved.bytes_in
            name = f"{plain(each.source)} → {plain(each.target)}"
            rows.append((plain(stats.tier), name, *_link(each.mbit_s, each.rtt_ms, each.loss), size(bytes_)))
        estimated = {(each.source, each.target) for each in stats.estimates.links}
        for tier, link in crossed.items():
            for source, target, bytes_ in ((stats.tier, tier, link.bytes_out), (tier, stats.tier, link.bytes_in)):
                if (source, target) not in estimated:
                    name = f"{plain(source)} → {plain(target)}"
                    rows.append((plain(stats.tier), name, *[UNKNOWN] * 3, size(bytes_)))
    return _table(("from", "link", "Mbit/s", "RTT ms", "loss %", "payload"), rows, left=2)


def _link(mbit_s: float, rtt_ms: float, loss: float) -> tuple[str, str, str]:
    return f"{mbit_s:.3g}", ms(rtt_ms), f"{loss * 100:.2g}"


def segments(pages: Sequence[Page]) -> RenderableType:
    """Segments that are loaded or ran, and the memory of each tier."""
    rows: list[Row] = []
    for stats in _known(pages):
        memory, batches = stats.memory, stats.batches
        rows += [_segment(stats.tier, each) for each in stats.segments]
        together = f"{batches.requests / batches.runs:.3g}" if batches.runs else UNKNOWN
        held = f"{size(memory.resident_bytes)} of {size(memory.budget_bytes)}"
        total = Text(f"all, {together} a run" if batches.runs else "all", "dim")
        rows.append((plain(stats.tier), total, held, sum(each.runs for each in stats.segments), *[""] * 4))
    columns = ("tier", "segment", "resident", "runs", "run p50 ms", "p99", "wait p50 ms", "p99")
    return _table(columns, rows, left=2)


def _segment(tier: str, segment: Segment) -> Row:
    return (
        plain(tier),
        plain(segment.segment, 20),
        "not loaded" if segment.resident_bytes is None else size(segment.resident_bytes),
        segment.runs,
        *(ms(each) for part in (segment.run_ms, segment.wait_ms) for each in (part.p50, part.p99)),
    )


def outcomes(pages: Sequence[Page]) -> RenderableType:
    """What became of requests, by outcome."""
    rows = [
        (plain(stats.tier), plain(outcome, 40), count)
        for stats in _known(pages)
        for outcome, count in sorted(stats.requests.totals.items())
    ]
    return _table(("tier", "requests", "count"), rows, left=2)


def latencies(pages: Sequence[Page], width: int = 60) -> RenderableType:
    """The last minute of each page as a line of blocks, from its smallest to its largest median."""
    rows: list[Row] = []
    for stats in _known(pages):
        medians = [second[1] for second in stats.requests.series]
        known = [each for each in medians if each is not None]
        span = f"{ms(min(known))} to {ms(max(known))}" if known else UNKNOWN
        rows.append((plain(stats.tier), spark(medians, width), span))
    return _table(("tier", "p50 by second, newest right", "ms"), rows, left=2)


def decisions(pages: Sequence[Page]) -> RenderableType:
    """Changes of the plan, the newest first."""
    columns = ("time", "session", "request", "plan", "why", "numbers")
    return _table(columns, decision_rows(pages), left=6)


def decision_rows(pages: Sequence[Page]) -> list[tuple[str, ...]]:
    """The cells of `decisions`."""
    found = [(each, stats) for stats in _known(pages, "session") for each in stats.decisions]
    found.sort(key=lambda pair: pair[0].at_unix_s, reverse=True)
    return [_decision(each, stats) for each, stats in found[:MOST_DECISIONS]]


def _decision(each: Decision, stats: Stats) -> tuple[str, ...]:
    numbers = ", ".join(f"{plain(name, 30)} {UNKNOWN if x is None else f'{x:.3g}'}" for name, x in each.numbers.items())
    return (
        _clock(each.at_unix_s),
        plain(stats.tier),
        "all" if each.request is None else str(each.request),
        f"{plain(each.from_plan, 40)} → {plain(each.to_plan, 40)}",
        plain(each.reason, 60),
        plain(numbers, 160),
    )


def _clock(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s).strftime("%H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return UNKNOWN


SECTIONS: dict[str, Callable[[Sequence[Page]], RenderableType]] = {
    "Tiers": tiers,
    "Plans": plans,
    "Links": links,
    "Latency": latencies,
    "Requests": outcomes,
    "Segments": segments,
    "Decisions": decisions,
}
"""What there is below the processes, by title."""


def report(pages: Sequence[Page]) -> RenderableType:
    """All tables that have something to say, one below the other."""
    parts: list[RenderableType] = [processes(pages)]
    for title, make in SECTIONS.items():
        made = make(pages)
        if isinstance(made, Table) and made.row_count:
            parts += [Text(f"\n{title}", style="bold"), made]
    return Group(*parts)


def _known(pages: Sequence[Page], kind: str = "") -> Iterator[Stats]:
    for page in pages:
        if page.stats is not None and kind in ("", page.stats.kind):
            yield page.stats


def _short(url: str) -> str:
    return url.removeprefix("http://").removesuffix("/stats")


def _state(state: str) -> Text:
    return Text(plain(state, 40), _STYLES.get(state, "yellow"))


def _table(columns: Sequence[str], rows: Sequence[Row], *, left: int, last_left: bool = False) -> Table:
    made = Table(header_style="bold dim", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        text = index < left or (last_left and index == len(columns) - 1)
        made.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made
