"""What `top` shows: the same tables as text and on the screen."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType
from tests.apps.top.pages import STATS, Decision, pages, session_data

from flagsplit.apps.top import tables
from flagsplit.apps.top.fetch import Page
from flagsplit.apps.top.live import Top
from flagsplit.apps.top.model import Stats
from flagsplit.apps.top.units import duration, ms, plain, size, spark
from flagsplit.runtime.telemetry.stats import SessionStats

HOSTILE = "[red]x[/red]\n\x1b[2J\u202e"


def text_of(made: RenderableType, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(made)
    return out.getvalue()


def page_of(stats: SessionStats) -> Page:
    data = session_data(stats)
    return Page("http://x:1/stats", Stats.model_validate(data), data)


def test_everything_is_shown() -> None:
    text = text_of(tables.report(pages()))
    for wanted in (
        "unreachable: Connection refused",
        "draining",
        "it went silent",
        "phone+cloud-1",
        "runner-up",
        "61.2",
        "phone → cloud",
        "20",
        "41",
        "0.2",
        "2.16 MB",
        "1.25 x",
        "15.4 MB of 8 GB",
        "all, 4 a run",
        "all-phone → phone+cloud-1",
        "cloud is up again",
        "left_ms 35",
        "answered",
        "█",
    ):
        assert wanted in text, wanted
    order = [text.index(reason) for reason in ("cloud is up again", "deadline is near", "cloud is down")]
    assert order == sorted(order)


def test_nothing_known_yet() -> None:
    text = text_of(tables.report([page_of(SessionStats()), *pages()[3:]]))
    assert "Decisions" not in text
    assert "Plans" not in text
    assert text_of(tables.report([])).startswith("tier")


def test_hostile_texts_are_only_text() -> None:
    decision = Decision(1.0, None, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: 1e300})
    stats = replace(STATS, decisions=(decision, replace(decision, at_s=1e300)))
    text = text_of(tables.report([page_of(stats), Page(HOSTILE, error=HOSTILE)]), 400)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]x[/red]\\n\\x1b[2J\\u202e" in text


def test_units() -> None:
    assert [ms(None), ms(0.1234), ms(41.96), ms(12345.6)] == ["-", "0.123", "42", "12346"]
    assert [size(None), size(12), size(1.5e6), size(2e10)] == ["-", "12 B", "1.5 MB", "20 GB"]
    assert [duration(each) for each in (5, 65, 3700, 200_000)] == ["5s", "1m 5s", "1h 1m", "2d 7h"]
    assert spark([None, 1.0, 2.0, 3.0]) == " ▁▅█"
    assert spark([5.0, 5.0]) == "▁▁"
    assert spark([]) == ""
    assert spark([1.0] * 100, 10) == "▁" * 10
    assert plain("x" * 200, 10) == "x" * 9 + "…"


class Asked:
    """Stands for the network: counts, and may fail for a while."""

    def __init__(self, answer: list[Page]) -> None:
        self.times = 0
        self.answer = answer

    def __call__(self, urls: Sequence[str]) -> list[Page]:
        self.times += 1
        return self.answer


@pytest.mark.slow
def test_the_live_view() -> None:
    asked = Asked(pages())

    async def main() -> None:
        app = Top(["http://x:1/stats"], 0.05, asked)
        async with app.run_test(size=(140, 50)) as pilot:
            for _ in range(200):
                if app.looks >= 2:
                    break
                await pilot.pause(0.02)
            shown = app.export_screenshot()
            for wanted in ("Processes", "phone+cloud-1", "refused", "draining", "cloud&#160;is&#160;up&#160;again"):
                assert wanted in shown, wanted
            assert app.query_one("#decisions").row_count == 3  # type: ignore[attr-defined]
            asked.answer = [Page("http://x:1/stats", error=HOSTILE)]
            seen = app.looks
            for _ in range(200):
                if app.looks > seen + 1:
                    break
                await pilot.pause(0.02)
            assert "[red]x[/red]" in app.export_screenshot().replace("&#160;", " ")
            await pilot.press("p")
            await pilot.pause(0.2)
            times = asked.times
            await pilot.pause(0.2)
            assert (app.paused, asked.times) == (True, times)
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 10), (80, 24), (220, 60)])
def test_any_size_of_screen(size: tuple[int, int]) -> None:
    async def main() -> None:
        app = Top(["x"], 60, Asked(pages()))
        async with app.run_test(size=size) as pilot:
            for _ in range(200):
                if app.looks:
                    break
                await pilot.pause(0.02)
            assert app.export_screenshot()

    asyncio.run(main())
