"""`flagsplit top`: sessions and workers as they run."""

from importlib.util import find_spec
from typing import Annotated

import typer

from flagsplit.apps.cli.output import console, print_json
from flagsplit.apps.top.fetch import fetch_all, stats_url
from flagsplit.apps.top.tables import report
from flagsplit.errors import ConfigError


def command(
    urls: Annotated[
        list[str], typer.Argument(metavar="URL...", help="Where sessions and workers are watched: http://HOST:PORT.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Print how they are now, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and end.")] = False,
) -> None:
    """Show how sessions and workers are doing, live. What cannot be reached is shown as such."""
    pages = [stats_url(url) for url in urls]
    if as_json:
        found = fetch_all(pages)
        print_json({"sources": [{"url": page.url, "error": page.error, "stats": page.data} for page in found]})
    elif once:
        console().print(report(fetch_all(pages)))
    elif find_spec("textual") is None:
        raise ConfigError("the live view needs textual: pip install 'flagsplit[top]'; or look once with --once")
    else:
        from flagsplit.apps.top.live import Top  # only here, because textual is an extra

        Top(pages, interval).run()
