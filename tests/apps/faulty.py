"""Bundles for phones whose chip has faults, and what reports of verification say."""

from collections.abc import Callable
from typing import Any

from flagsplit.apps.verification import SegmentCheck, VerifyReport
from flagsplit.runtime.bundle import Bundle

SHAPE = (2, 3, 16, 16)
Faulty = Callable[..., Bundle]


def same(thing: Any) -> Any:
    """Stands for a factory, with the thing bound to it."""
    return thing


def of(report: VerifyReport, target: str) -> list[SegmentCheck]:
    return [check for check in report.segments if check.target == target]


def verdicts(report: VerifyReport) -> set[str]:
    return {each.verdict for each in report.segments} | {each.verdict for each in report.plans}
