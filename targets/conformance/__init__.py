"""The conformance suite of targets, for ours and for those of others: what a target takes, and whether it is right.

Cases are the ONNX project's own node tests and models as they are used; each goes through `supports`, `compile`,
`load` and `run`, in a process that may die, and its answers are compared. `docs/conformance.md` says how to certify a
target of your own.

    from flagsplit.targets.conformance import certify

    card = certify("my_package.my_target:MyTarget")
    print(card.counts, card.ok)
"""

from flagsplit.targets.conformance.cases import Case, CaseResult
from flagsplit.targets.conformance.certification import certify
from flagsplit.targets.conformance.corpus import CorpusModel, corpus_cases
from flagsplit.targets.conformance.node_tests import node_cases
from flagsplit.targets.conformance.one_case import check_case, run_case
from flagsplit.targets.conformance.scorecard import CaseLine, Counts, ScoreCard
from flagsplit.targets.conformance.tolerance import Tolerance

__all__ = [
    "Case",
    "CaseLine",
    "CaseResult",
    "CorpusModel",
    "Counts",
    "ScoreCard",
    "Tolerance",
    "certify",
    "check_case",
    "corpus_cases",
    "node_cases",
    "run_case",
]
