"""`flagsplit certify`: what a target takes, and whether it is right."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flagsplit.apps.cli import options
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, table
from flagsplit.errors import ConfigError
from flagsplit.targets.catalogue import missing_sdk
from flagsplit.targets.conformance import Case, Counts, ScoreCard, certify, corpus_cases, node_cases
from flagsplit.targets.conformance.naming import target_named

_MOST_REASONS = 12
_INT8_ALONE = ("int8",)
"""What a target can choose to compute in that gets int8 models of the corpus."""

_JOBS = min(4, os.cpu_count() or 1)


def command(
    target: Annotated[str, typer.Argument(help="A target, such as ort; or module:factory, for one of your own.")],
    operator: Annotated[
        list[str] | None, typer.Option(metavar="OP", help="Only node tests with this operator; may be repeated.")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this case; may be repeated.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A choice of the target, such as precision=fp16.")
    ] = None,
    corpus: Annotated[bool, typer.Option(help="Whether to run models of the zoo too, whole and in part.")] = True,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="How many processes at a time.")] = _JOBS,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep results there as they come, and do not run those again that it has."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the score card as one JSON object.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the score card.")] = None,
) -> None:
    """Run the ONNX project's node tests and models of the zoo through a target, and print its score card.

    Exit code 0: no answer is wrong and nothing crashed; what a target refuses is listed, not held against it.
    """
    choices = options.pairs("--choice", choice)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, for module:factory
    if missing_sdk(target):
        raise ConfigError(f"cannot certify {target}: {missing_sdk(target)}")
    _check_choices(target, choices)
    with tempfile.TemporaryDirectory(prefix="flagsplit-corpus-") as scratch, progress_bar(quiet=as_json) as bar:
        bar("cases", 0.0)
        int8 = target_named(target).describe().choices.get("precision", ()) == _INT8_ALONE
        cases = _cases(operator or (), case or (), Path(scratch), corpus=corpus, int8=int8)
        card = certify(
            target, cases, choices=choices, jobs=jobs, keep=resume, progress=lambda _, share: bar("cases", share)
        )
    if output is not None:
        _write(output, card)
    if as_json:
        print_json(card.to_data())
    else:
        _print(card)
    if not card.ok:
        raise typer.Exit(1)


def _check_choices(target: str, choices: dict[str, str]) -> None:
    known = target_named(target).describe().choices
    for name, value in choices.items():
        if value not in known.get(name, ()):
            have = "; ".join(f"{key}={'|'.join(values)}" for key, values in known.items()) or "none"
            raise ConfigError(f"--choice expects one of target {target} ({have}), came {name}={value}")


def _cases(operators: Sequence[str], names: Sequence[str], folder: Path, *, corpus: bool, int8: bool) -> list[Case]:
    from flagsplit.apps.conformance_models import NAMES, zoo_models

    found: list[Case] = []
    if not names or any("/" not in name for name in names):
        found = node_cases(operators, names)
    wanted = {name.partition("/")[0] for name in names if "/" in name} if names else set(NAMES)
    if corpus and not operators and wanted:
        models = zoo_models((name for name in NAMES if name in wanted), quantize=int8)
        found += [each for each in corpus_cases(models, folder) if not names or each.name in names]
    missing = [name for name in names if name not in {each.name for each in found}]
    if missing or not found:
        what = f"case {missing[0]!r}" if missing else f"operator {', '.join(operators)}"
        raise ConfigError(
            f"there is no {what}; cases are called like test_relu or ppocr-det/middle, operators like in ONNX"
        )
    return found


def _write(path: Path, card: ScoreCard) -> None:
    try:
        path.write_text(card.to_json(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place with -o") from None


def _print(card: ScoreCard) -> None:
    out = console()
    what = "".join(f" {name}={value}" for name, value in card.choices.items())
    title = f"{card.target} {card.version}{what}, computing in {card.precision}, on the tests of onnx {card.onnx}"
    rows = [(name, *_figures(counts)) for name, counts in (*card.sources.items(), ("all", card.counts))]
    out.print(table(title, ("cases", *_COLUMNS), rows))
    for names, number in card.constants.items():
        say(out, f"{number} node tests passed with {names} of their inputs as constants")
    partly = [(name, *_figures(counts)) for name, counts in card.operators.items() if counts.failed or counts.crashed]
    partly += [
        (name, *_figures(counts))
        for name, counts in card.operators.items()
        if counts.refused and not counts.failed and not counts.crashed
    ]
    if partly:
        out.print()
        out.print(table("Operators that do not pass all their node tests", ("operator", *_COLUMNS), partly))
    for status, reasons in card.reasons.items():
        _print_reasons(out, status, reasons)
    wrong = [line for line in card.lines if line.status in ("failed", "crashed")]
    if wrong:
        out.print()
        rows = [(line.case, line.status, line.why) for line in wrong]
        out.print(table("Wrong answers and crashes", ("case", "", "why"), rows, left=3))
    if card.disagreements:
        out.print()
        rows = [(line.case, line.why) for line in card.disagreements]
        out.print(table("Taken by supports(), refused by compile()", ("case", "why"), rows, left=2))


_COLUMNS = ("passed", "failed", "crashed", "refused", "skipped")


def _figures(counts: Counts) -> tuple[int, ...]:
    return (counts.passed, counts.failed, counts.crashed, counts.refused, counts.skipped)


def _print_reasons(out: Console, status: str, reasons: object) -> None:
    if not isinstance(reasons, dict) or not reasons or status in ("failed", "crashed"):
        return
    out.print()
    rows: list[tuple[str, object]] = list(reasons.items())[:_MOST_REASONS]
    if len(reasons) > _MOST_REASONS:
        rows.append((f"and {len(reasons) - _MOST_REASONS} more", ""))
    out.print(table(f"Why cases were {status}", ("reason", "cases"), rows))
