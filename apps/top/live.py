"""The live view: pages asked again and again, tables and sparklines of them. Needs textual.

Keys: q ends, p pauses. Pages are asked on a thread, so a worker that hangs does not hold the view up.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Header, Sparkline, Static

from flagsplit.apps.top import tables
from flagsplit.apps.top.fetch import Page, fetch_all
from flagsplit.apps.top.model import Stats
from flagsplit.apps.top.units import UNKNOWN, ms, plain

_COLUMNS = ("time", "session", "request", "plan", "why", "numbers")


class Panel(Static):
    """A table with a title in its border."""

    def __init__(self, title: str, name: str, width: str = "") -> None:
        super().__init__(id=name, classes=f"panel {width}")
        self.border_title = title


class Top(App[None]):
    """Shows pages until it is told to end.

    Args:
        urls: of the pages.
        interval_s: seconds between two looks.
        ask: what gets the pages.
    """

    TITLE = "flagsplit top"
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("p", "pause", "Pause")]
    CSS = """
    Screen { layout: vertical; }
    .panel, #latency, #decisions { border: round $primary-darken-2; border-title-color: $text; padding: 0 1; }
    .panel { height: auto; }
    .pair { height: auto; }
    .pair > .panel { width: 1fr; }
    .pair > .wide { width: 3fr; }
    .pair > .narrow { width: 2fr; }
    #latency { width: 2fr; height: auto; }
    #latency Sparkline { height: 3; margin-top: 1; }
    #decisions { height: auto; max-height: 24; min-height: 4; }
    """

    def __init__(
        self,
        urls: Sequence[str],
        interval_s: float = 1.0,
        ask: Callable[[Sequence[str]], list[Page]] = fetch_all,
    ) -> None:
        super().__init__()
        self._urls = tuple(urls)
        self._interval_s = interval_s
        self._ask = ask
        self.paused = False
        self.looks = 0

    def compose(self) -> ComposeResult:
        """The layout."""
        yield Header(show_clock=True)
        with VerticalScroll():
            yield Panel("Processes", "processes")
            with Horizontal(classes="pair"):
                yield Panel("Tiers", "tiers", "wide")
                yield Panel("Plans", "plans", "narrow")
            with Horizontal(classes="pair"):
                yield Panel("Links", "links", "wide")
                with VerticalScroll(id="latency"):
                    yield Static(id="latency-now")
                    yield Sparkline([], id="latency-line")
            with Horizontal(classes="pair"):
                yield Panel("Segments", "segments", "wide")
                yield Panel("Requests", "requests", "narrow")
            yield DataTable(id="decisions", show_cursor=False, zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one("#latency").border_title = "Latency of the last minute"
        log = self.query_one("#decisions", DataTable)
        log.border_title = "Decisions"
        log.add_columns(*_COLUMNS)
        self.look()
        self.set_interval(self._interval_s, self._due)

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self.paused = not self.paused
        self.sub_title = "paused" if self.paused else ""

    def _due(self) -> None:
        if not self.paused:
            self.look()

    @work(thread=True, exclusive=True)
    def look(self) -> None:
        """Ask all pages and show them."""
        pages = self._ask(self._urls)
        self.call_from_thread(self.show, pages)

    def show(self, pages: Sequence[Page]) -> None:
        """Put pages on the screen."""
        self.looks += 1
        for name, make in (
            ("processes", tables.processes),
            ("tiers", tables.tiers),
            ("plans", tables.plans),
            ("links", tables.links),
            ("segments", tables.segments),
            ("requests", tables.outcomes),
        ):
            self.query_one(f"#{name}", Static).update(make(pages))
        self._show_latency(_most_telling(pages))
        log = self.query_one("#decisions", DataTable)
        log.clear()
        log.add_rows(tables.decision_rows(pages))

    def _show_latency(self, stats: Stats | None) -> None:
        if stats is None:
            self.query_one("#latency-now", Static).update(UNKNOWN)
            return
        latency = stats.requests.latency_ms
        text = f"{stats.kind} {plain(stats.tier)}: p50 {ms(latency.p50)} ms, p99 {ms(latency.p99)} ms"
        self.query_one("#latency-now", Static).update(Text(text))
        medians = [each[1] for each in stats.requests.series]
        self.query_one("#latency-line", Sparkline).data = [0.0 if each is None else each for each in medians]


def _most_telling(pages: Sequence[Page]) -> Stats | None:
    """A session if there is one: it knows what the user waits for."""
    known = [page.stats for page in pages if page.stats is not None]
    return min(known, key=lambda stats: stats.kind != "session", default=None)
