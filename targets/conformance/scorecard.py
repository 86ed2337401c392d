"""The score card: what of the cases a target passes, and why not the others, as data and as JSON."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flagsplit.errors import ConfigError
from flagsplit.targets.conformance.cases import Case, CaseResult
from flagsplit.targets.conformance.tolerance import ELEMENTS, NORMS, Precision, exceptions_of, precision_of
from flagsplit.targets.interface import TargetDescription

STATUSES = ("passed", "failed", "crashed", "refused", "skipped")

_PARTICULAR = re.compile(r"'[^']*'|\b\d[\d.,]*\b|\[[^\]]*\]")


@dataclass(frozen=True)
class Counts:
    """How many cases ended how; see `CaseResult.status`."""

    passed: int = 0
    failed: int = 0
    crashed: int = 0
    refused: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class CaseLine:
    """A case that was not passed, or one in which `supports` and `compile` disagree.

    Attributes:
        case: its name.
        operators: of the case.
        status: see `CaseResult.status`.
        why: the reason.
    """

    case: str
    operators: tuple[str, ...]
    status: str
    why: str


@dataclass(frozen=True)
class ScoreCard:
    """What became of all cases.

    Attributes:
        target, version, runs_here: as the target describes itself.
        choices: of the build.
        precision: what it computes in, which decides the tolerances.
        onnx: version of the package that the node tests are from.
        counts: all cases.
        sources: those of the node tests, and those of the corpus.
        operators: for each operator, the node tests that have it.
        constants: how many node tests passed only with some inputs as constants, by which: "sizes", "all but the
            first".
        reasons: for each status but "passed", the reasons without what is particular to a case, the most frequent
            first.
        lines: what failed, crashed or was refused.
        disagreements: what `supports` takes and `compile` does not.
        tolerances: the table, in words.
    """

    target: str
    version: str
    runs_here: str
    choices: Mapping[str, str]
    precision: Precision
    onnx: str
    counts: Counts
    sources: Mapping[str, Counts]
    operators: Mapping[str, Counts]
    constants: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]
    lines: tuple[CaseLine, ...]
    disagreements: tuple[CaseLine, ...]
    tolerances: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether nothing failed and nothing crashed."""
        return not self.counts.failed and not self.counts.crashed

    def to_data(self) -> dict[str, Any]:
        """As JSON data; the counts of all cases stand at the top."""
        data = asdict(self)
        return {**data.pop("counts"), **data}

    def to_json(self) -> str:
        """As text, one line for each operator and each case; `read` reads it."""
        parts = []
        for key, value in self.to_data().items():
            if isinstance(value, dict) and value:
                rows = ",\n".join(f"  {json.dumps(name)}: {_line(each)}" for name, each in value.items())
                parts.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
            elif isinstance(value, tuple) and value:
                rows = ",\n".join(f"  {_line(each)}" for each in value)
                parts.append(f" {json.dumps(key)}: [\n{rows}\n ]")
            else:
                parts.append(f" {json.dumps(key)}: {_line(value)}")
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @classmethod
    def read(cls, text: str) -> "ScoreCard":
        """From what `to_json` gave.

        Raises:
            ConfigError: it is no score card.
        """
        try:
            data = json.loads(text)
            counts = Counts(**{status: data.pop(status) for status in STATUSES})
            for key in ("sources", "operators"):
                data[key] = {name: Counts(**each) for name, each in data[key].items()}
            for key in ("lines", "disagreements"):
                data[key] = tuple(CaseLine(**{**each, "operators": tuple(each["operators"])}) for each in data[key])
            return cls(counts=counts, **data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"expected a score card, came something else: {error}") from error


def score(
    about: TargetDescription, choices: Mapping[str, str], cases: Sequence[Case], results: Sequence[CaseResult]
) -> ScoreCard:
    """Count.

    Args:
        about: the target.
        choices: of the build.
        cases: all of them.
        results: one for each.
    """
    import onnx

    pairs = list(zip(cases, results, strict=True))
    node = [(case, result) for case, result in pairs if case.source == "node"]
    operators = sorted({name for case, _ in node for name in case.operators})
    sources = list(dict.fromkeys(case.source for case in cases))
    return ScoreCard(
        target=about.name,
        version=about.version,
        runs_here=about.runs_here,
        choices=dict(choices),
        precision=precision_of(about, choices),
        onnx=onnx.__version__,
        counts=_counts(results),
        sources={name: _counts(result for case, result in pairs if case.source == name) for name in sources},
        operators={name: _counts(result for case, result in node if name in case.operators) for name in operators},
        constants=dict(
            Counter(r.constants for _, r in node if r.status == "passed" and r.constants != "none").most_common()
        ),
        reasons={
            status: dict(Counter(_kind(r.why) for r in results if r.status == status).most_common())
            for status in STATUSES[1:]
        },
        lines=tuple(
            CaseLine(case.name, case.operators, result.status, result.why)
            for case, result in pairs
            if result.status in ("failed", "crashed", "refused")
        ),
        disagreements=tuple(
            CaseLine(case.name, case.operators, result.status, result.disagreement)
            for case, result in pairs
            if result.disagreement
        ),
        tolerances=_tolerances(precision_of(about, choices)),
    )


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _counts(results: Iterable[CaseResult]) -> Counts:
    found = Counter[str](result.status for result in results)
    return Counts(**found)


def _kind(why: str) -> str:
    """A reason without what is particular to the case."""
    return _PARTICULAR.sub("…", why)[:200]


def _tolerances(precision: Precision) -> dict[str, str]:
    found = {dtype: str(tolerance) for (which, dtype), tolerance in ELEMENTS.items() if which == precision}
    found["others"] = "equal"
    found["corpus"] = f"norm of the error {NORMS[precision]:g} of the answer's"
    found.update({name: f"{factor:g} times as much: {why}" for name, (factor, why) in exceptions_of(precision).items()})
    return found
