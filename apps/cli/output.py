"""Printing: tables for people, one JSON object for machines, progress on standard error."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from flagsplit.apps.cli.standard_streams import can_say


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output, on one line for programs; NaNs, which JSON lacks, become null."""
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(_finite(data), indent=indent, ensure_ascii=False)
    if not can_say(text):
        text = json.dumps(_finite(data), indent=indent)
    print(text, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def console() -> Console:
    """The console for people; as wide as the terminal, at least wide enough for the tables."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=120)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> RenderableType:
    """A table under its title; the first `left` columns are text, the others figures."""
    made = Table(header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return Group(Text(title, style="bold"), made) if title else made


def say(out: Console, text: str = "") -> None:
    """A line of text, as it is: no markup, and no line breaks but the terminal's."""
    out.print(text, markup=False, soft_wrap=True)


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape as people write it."""
    return "[" + ", ".join(map(str, shape)) + "]"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, told what is being done and the share done; silent where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _share: None
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def size_text(size_bytes: float) -> str:
    """A size as people read it, in powers of ten."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes:.0f} B"


def rate_text(per_second: float, unit: str) -> str:
    """A rate with its metric prefix."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if per_second >= factor:
            return f"{per_second / factor:.4g} {prefix}{unit}"
    return f"{per_second:.4g} {unit}"
