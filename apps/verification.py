"""What `flagsplit verify` found: of every artifact's segments and of every plan from end to end, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flagsplit.apps.deviation import Deviation, Tolerance
from flagsplit.apps.fault import Fault
from flagsplit.targets.interface import Array

Verdict = Literal["agrees", "departs", "failed", "not checked"]
"""Of outputs within the tolerance; beyond it; of what does not load or run; of what this host cannot run."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs of one request.

    Attributes:
        label: where they come from.
        tensors: by name.
        made_up: whether they are random numbers instead of data.
    """

    label: str
    tensors: Mapping[str, Array]
    made_up: bool = False


@dataclass(frozen=True)
class SegmentCheck:
    """A segment of an artifact on all samples.

    Attributes:
        tier, target, segment: which.
        plans: those that run it.
        atoms: of how many atoms it was run, 0 as a whole.
        allowed: what may differ.
        verdict: what came out.
        outputs: of each output the deviation of the sample that is farthest off.
        reason: why it failed or was not checked.
        fault: where it goes wrong, if it departs and that was looked for.
        emulated: whether an emulator or an interpreter ran it in place of the device.
    """

    tier: str
    target: str
    segment: str
    plans: tuple[str, ...]
    allowed: Tolerance
    verdict: Verdict
    outputs: tuple[Deviation, ...] = ()
    reason: str = ""
    fault: Fault | None = None
    atoms: int = 0
    emulated: bool = False

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "tier": self.tier,
            "target": self.target,
            "segment": self.segment,
            "plans": list(self.plans),
            "atoms": self.atoms,
            "tolerance": tolerance_data(self.allowed),
            "verdict": self.verdict,
            "basis": "emulated" if self.emulated else "measured",
            "reason": self.reason,
            "outputs": [each.to_data() for each in self.outputs],
            "fault": self.fault and self.fault.to_data(),
        }


@dataclass(frozen=True)
class StepError:
    """How far a step of a plan that is run from end to end is off by then.

    Attributes:
        tier, target, segment: which.
        output: of its outputs the one that is farthest off.
    """

    tier: str
    target: str
    segment: str
    output: Deviation

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "tier": self.tier,
            "target": self.target,
            "segment": self.segment,
            "output": self.output.to_data(),
        }


@dataclass(frozen=True)
class PlanCheck:
    """A plan from end to end on all samples, against its own reference.

    Attributes:
        plan: its name.
        targets: by tier that runs something, the target whose artifact did.
        allowed: what may differ: the loosest of the artifacts' tolerances; of a lossy plan with artifacts that are not
            exact, by what its codecs lose more.
        verdict: what came out.
        outputs: of each graph output the deviation of the sample that is farthest off.
        reason: why it failed or was not checked; or why it departs, if that is not in a segment.
        steps: how the error came to be, step by step.
    """

    plan: str
    targets: Mapping[str, str]
    allowed: Tolerance
    verdict: Verdict
    outputs: tuple[Deviation, ...] = ()
    reason: str = ""
    steps: tuple[StepError, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "plan": self.plan,
            "targets": dict(self.targets),
            "tolerance": tolerance_data(self.allowed),
            "verdict": self.verdict,
            "reason": self.reason,
            "outputs": [each.to_data() for each in self.outputs],
            "steps": [each.to_data() for each in self.steps],
        }


@dataclass(frozen=True)
class VerifyReport:
    """What was verified.

    Attributes:
        bundle: its path.
        digest: of the bundle.
        samples: label of each.
        made_up: whether all of them are random numbers: they reach less of what a model does than data does.
        segments: of every artifact.
        plans: from end to end.
    """

    bundle: str
    digest: str
    samples: tuple[str, ...]
    made_up: bool
    segments: tuple[SegmentCheck, ...]
    plans: tuple[PlanCheck, ...]

    @property
    def wrong(self) -> int:
        """How many checks depart or failed."""
        verdicts = [each.verdict for each in self.segments] + [each.verdict for each in self.plans]
        return sum(each in ("departs", "failed") for each in verdicts)

    @property
    def departs(self) -> bool:
        """Whether anything departs or failed."""
        return self.wrong > 0

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Why artifacts were not checked, each reason once, with tier and target."""
        found = (f"{each.tier}/{each.target}: {each.reason}" for each in self.segments if each.verdict == "not checked")
        return tuple(dict.fromkeys(found))

    @property
    def checked(self) -> int:
        """How many segments of artifacts were run."""
        return sum(each.verdict != "not checked" for each in self.segments)

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "samples": list(self.samples),
            "made_up": self.made_up,
            "departs": self.departs,
            "checked": self.checked,
            "unchecked": list(self.unchecked),
            "segments": [each.to_data() for each in self.segments],
            "plans": [each.to_data() for each in self.plans],
        }


def tolerance_data(allowed: Tolerance) -> dict[str, Any]:
    """As JSON data."""
    return {"measure": allowed.measure, "limit": allowed.limit}


def farthest(found: list[list[Deviation]]) -> tuple[Deviation, ...]:
    """Of each output the deviation that is farthest off.

    Args:
        found: for each sample, of each output; the same outputs in the same order.
    """

    def rank(each: Deviation) -> tuple[bool, float]:
        return each.departs, math.inf if math.isnan(each.norm_relative) else each.norm_relative

    return tuple(max(column, key=rank) for column in zip(*found, strict=True))
