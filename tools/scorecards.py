"""Certify targets and write down what came out: `docs/scorecards/TARGET.json`, and the tables of the docs page.

python tools/scorecards.py                    every target of the catalogue whose SDK is here
python tools/scorecards.py ort litert         some of them
python tools/scorecards.py --tables           only the tables, from the files that are there
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flagsplit.targets.catalogue import TARGETS, get_target, missing_sdk
from flagsplit.targets.conformance import Counts, ScoreCard

DOCS = Path(__file__).parents[1] / "docs"
CARDS = DOCS / "scorecards"
PAGE = DOCS / "conformance.md"
BEGIN, END = "<!-- scorecards: made by make scorecards -->\n", "<!-- end of scorecards -->\n"

_COLUMNS = ("passed", "failed", "crashed", "refused", "skipped")
_VARIANTS: Mapping[str, Sequence[str]] = {"precision": ("fp16", "fp32")}
"""The choices that have a card of their own where a target offers them."""


def main() -> int:
    """Write the cards and the tables; 1 if a target could not be certified."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help="names of the catalogue; all if there are none")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    here = [name for name in TARGETS if not missing_sdk(name)]
    failed = [] if options.tables else [name for name in options.targets or here if not _certify(name)]
    PAGE.write_text(with_tables(PAGE.read_text(), read_cards()))
    return 1 if failed else 0


def _certify(name: str) -> bool:
    """Write the cards of a target; whether there is one for each of its variants."""
    choices = get_target(name).describe().choices
    variants = (
        [[]]
        if not choices.get("precision")
        else [["--choice", f"precision={value}"] for value in _VARIANTS["precision"] if value in choices["precision"]]
    )
    ok = True
    for variant in variants:
        suffix = "-" + variant[1].partition("=")[2] if variant else ""
        file = CARDS / f"{name}{suffix}.json"
        command = [sys.executable, "-m", "flagsplit.apps.cli", "certify", name, *variant, "-o", str(file)]
        code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own program
        ok = ok and code in (0, 1)  # 1: it failed some cases, which is what a card is for
    return ok


def read_cards() -> dict[str, ScoreCard]:
    """The cards that are there, by file name without suffix, sorted."""
    return {path.stem: ScoreCard.read(path.read_text(encoding="utf-8")) for path in sorted(CARDS.glob("*.json"))}


def with_tables(page: str, cards: Mapping[str, ScoreCard]) -> str:
    """The page with the tables of these cards between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(_tables(cards)) + "\n" + END + after


def _tables(cards: Mapping[str, ScoreCard]) -> Iterable[str]:
    yield f"| target | version | choices | cases | {' | '.join(_COLUMNS)} | with constants |"
    yield "|---|---|---|---|" + "---:|" * 6
    for card in cards.values():
        choices = ", ".join(f"{name}={value}" for name, value in card.choices.items()) or "none"
        for source, counts in card.sources.items():
            constants = str(sum(card.constants.values())) if source == "node" else ""
            yield _row(card.target, card.version, choices, f"{source}, onnx {card.onnx}", *_figures(counts), constants)
    for stem, card in cards.items():
        lines = [line for line in card.lines if line.status in ("failed", "crashed")]
        if lines:
            yield ""
            yield f"Not passed by [{stem}](scorecards/{stem}.json):"
            yield ""
            yield "| case | | why |"
            yield "|---|---|---|"
            yield from (_row(f"`{line.case}`", line.status, line.why.replace("|", "\\|")) for line in lines)


def _figures(counts: Counts) -> list[str]:
    return [f"{getattr(counts, column):,}" for column in _COLUMNS]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
