"""Certifying a target: every case through it, and the score card of what came out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flagsplit.targets.conformance.cases import Case, CaseResult
from flagsplit.targets.conformance.isolated import run_isolated
from flagsplit.targets.conformance.kept_results import KeptResults
from flagsplit.targets.conformance.naming import name_of, target_named
from flagsplit.targets.conformance.node_tests import node_cases
from flagsplit.targets.conformance.one_case import run_case
from flagsplit.targets.conformance.scorecard import ScoreCard, score
from flagsplit.targets.interface import Target

Progress = Callable[[str, float], None]
"""Told the name of a case that is done, and the share of all that are."""


def certify(
    target: str | Target | Callable[[], Target],
    cases: Sequence[Case] | None = None,
    *,
    choices: Mapping[str, str] | None = None,
    jobs: int = 1,
    keep: Path | None = None,
    progress: Progress = lambda _name, _share: None,
) -> ScoreCard:
    """Run cases through a target.

    Args:
        target: a name of the catalogue, `module:factory`, or a function or class of a module, all of which run in
            processes of their own, so that a case that kills or hangs its process costs only itself; or a target,
            whose cases run in this process one after another.
        cases: what to compute; all node tests of the installed onnx package if None.
        choices: the target's own choices of a build; `TargetDescription.choices` says what there is.
        jobs: how many processes at a time.
        keep: a file that results are kept in as they come; those that are in it already are taken, not run again.
        progress: told of each case that is done.

    Raises:
        ConfigError: the target's SDK is not installed, there is no such target, it does not have these choices, or
            `keep` is of something else.
        PolicyError: the catalogue has no target of that name.
    """
    cases = node_cases() if cases is None else list(cases)
    choices = dict(choices or {})
    name, made = _told_apart(target)
    about = made.describe()
    kept = KeptResults(keep, about, choices) if keep is not None else None
    results = {case.name: kept.found[case.name] for case in cases if case.name in kept.found} if kept else {}

    def done(result: CaseResult) -> None:
        results[result.name] = result
        if kept is not None:
            kept.add(result)
        progress(result.name, len(results) / len(cases))

    for case in cases:
        if case.name not in results and (case.skip or not name):
            done(run_case(made, case, choices))
    run_isolated(name, [case for case in cases if case.name not in results], choices, jobs=jobs, done=done)
    return score(about, choices, cases, [results[case.name] for case in cases])


def _told_apart(target: str | Target | Callable[[], Target]) -> tuple[str, Target]:
    """The name by which other processes find the target, "" if they cannot; and the target."""
    if isinstance(target, str):
        return target, target_named(target)
    if isinstance(target, type) or not hasattr(target, "describe"):
        factory: Callable[[], Target] = target
        return name_of(factory), factory()
    return "", target  # type: ignore[return-value]
