"""Certify targets and write down what came out: `docs/scorecards/TARGET.json`, and the tables of the docs page.

python tools/scorecards.py                    every target of the catalogue whose SDK is here
python tools/scorecards.py ort litert         some of them
python tools/scorecards.py --tables           only the tables, from the files that are there

A run that was interrupted is gone on with by the next; delete build/scorecards/ where a target has changed since.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flagsplit.targets.catalogue import TARGETS, missing_sdk
from flagsplit.targets.conformance import Counts, ScoreCard
from flagsplit.targets.conformance.naming import target_named

DOCS = Path(__file__).parents[1] / "docs"
CARDS = DOCS / "scorecards"
KEPT = DOCS.parent / "build" / "scorecards"
"""What a run that was interrupted had done, by card: the next one goes on there."""
PAGE = DOCS / "conformance.md"
BEGIN, END = "<!-- scorecards: made by make scorecards -->\n", "<!-- end of scorecards -->\n"

_MOST_NAMES = 3
_COLUMNS = ("passed", "failed", "crashed", "refused", "skipped")
_VARIANTS: Mapping[str, Sequence[str]] = {"precision": ("fp16", "fp32")}
"""The choices that have a card of their own where a target offers them."""
STANDS_IN: Mapping[str, str] = {"ascend": "flagsplit.targets.cloud.ascend.on_cpu:AscendOnCpu"}
"""What is certified in the place of a target that hosts cannot run: its files, by another engine."""
_ALWAYS: Mapping[str, Sequence[str]] = {"cuda": ("--choice", "device=cpu")}
"""What a target is always certified with: its program can be run on any host."""


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
    asked = STANDS_IN.get(name, name)
    choices = target_named(asked).describe().choices
    variants = (
        [[]]
        if not choices.get("precision")
        else [["--choice", f"precision={value}"] for value in _VARIANTS["precision"] if value in choices["precision"]]
        or [[]]
    )
    ok = True
    for variant in variants:
        suffix = "-" + variant[1].partition("=")[2] if variant else ""
        file = CARDS / f"{name}{suffix}.json"
        KEPT.mkdir(parents=True, exist_ok=True)
        kept = KEPT / f"{name}{suffix}.jsonl"
        command = [sys.executable, "-m", "flagsplit.apps.cli", "certify", asked, *variant, *_ALWAYS.get(name, ())]
        code = subprocess.run([*command, "--resume", str(kept), "-o", str(file)], check=False).returncode  # noqa: S603 - our own program
        ok = ok and code in (0, 1)  # 1: it failed some cases, which is what a card is for
        if code in (0, 1):
            kept.unlink()
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
        alike: dict[tuple[str, str], list[str]] = {}
        for line in card.lines:
            if line.status in ("failed", "crashed"):
                what = line.why.partition(": ")[2] if line.why.startswith("output ") else line.why
                alike.setdefault((line.status, what), []).append(line.case)
        if alike:
            yield ""
            yield f"Not passed by [{stem}](scorecards/{stem}.json):"
            yield ""
            yield "| cases | | why |"
            yield "|---|---|---|"
            yield from (_row(_cases(names), status, why.replace("|", "\\|")) for (status, why), names in alike.items())


def _cases(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _figures(counts: Counts) -> list[str]:
    return [f"{getattr(counts, column):,}" for column in _COLUMNS]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
