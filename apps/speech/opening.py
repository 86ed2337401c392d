"""The recognizer that was asked for: a program that runs here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PHONE = "phone"
ALL_PHONE = "all-phone"


@dataclass(frozen=True)
class RecognizerChoice:
    """What recognizes speech, and where.

    Attributes:
        model: `zoo:NAME`, a folder of a program, or a bundle of one.
        plan: which tier does what; empty for the best one.
        cloud: addresses of decoder services.
        keys: the key folder; None for the user's own.
        threads: of the engine here; 0 lets it choose.
    """

    model: str = "zoo:moonshine"
    plan: str = ""
    cloud: tuple[str, ...] = ()
    keys: Path | None = None
    threads: int = 1
