"""flagsplit: one neural network, split across phone, edge and cloud.

    import flagsplit

    flagsplit.build("model.onnx", "phone,edge,cloud", "model.flagsplit")
    with flagsplit.connect("model.flagsplit") as session:
        outputs = session.run({"x": array})

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flagsplit._version import VERSION

if TYPE_CHECKING:
    from flagsplit.apps.assembly import BuildResult
    from flagsplit.apps.building import build, build_async, plan
    from flagsplit.apps.connecting import (
        connect,
        connect_async,
        connect_buckets,
        open,  # noqa: A004 - flagsplit.open
        open_async,
    )
    from flagsplit.apps.planning import PlanReport
    from flagsplit.apps.speech.transcribe import transcribe
    from flagsplit.apps.speech.transcript import Transcript
    from flagsplit.apps.verification import VerifyReport
    from flagsplit.apps.verify import verify
    from flagsplit.errors import FlagsplitError
    from flagsplit.runtime.async_session import AsyncSession
    from flagsplit.runtime.bucketed import BucketedSession
    from flagsplit.runtime.bundle import Bundle
    from flagsplit.runtime.session import Session
    from flagsplit.runtime.session_settings import Answer, SessionSettings
    from flagsplit.splitter.sla import SLA

__version__ = VERSION

_HOMES = {
    "Answer": "flagsplit.runtime.session_settings",
    "AsyncSession": "flagsplit.runtime.async_session",
    "BucketedSession": "flagsplit.runtime.bucketed",
    "BuildResult": "flagsplit.apps.assembly",
    "Bundle": "flagsplit.runtime.bundle",
    "FlagsplitError": "flagsplit.errors",
    "PlanReport": "flagsplit.apps.planning",
    "SLA": "flagsplit.splitter.sla",
    "Session": "flagsplit.runtime.session",
    "SessionSettings": "flagsplit.runtime.session_settings",
    "Transcript": "flagsplit.apps.speech.transcript",
    "VerifyReport": "flagsplit.apps.verification",
    "build": "flagsplit.apps.building",
    "build_async": "flagsplit.apps.building",
    "connect": "flagsplit.apps.connecting",
    "connect_async": "flagsplit.apps.connecting",
    "connect_buckets": "flagsplit.apps.connecting",
    "open": "flagsplit.apps.connecting",
    "open_async": "flagsplit.apps.connecting",
    "plan": "flagsplit.apps.building",
    "transcribe": "flagsplit.apps.speech.transcribe",
    "verify": "flagsplit.apps.verify",
}

__all__ = [
    "SLA",
    "Answer",
    "AsyncSession",
    "BucketedSession",
    "BuildResult",
    "Bundle",
    "FlagsplitError",
    "PlanReport",
    "Session",
    "SessionSettings",
    "Transcript",
    "VerifyReport",
    "__version__",
    "build",
    "build_async",
    "connect",
    "connect_async",
    "connect_buckets",
    "open",
    "open_async",
    "plan",
    "transcribe",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'flagsplit' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
