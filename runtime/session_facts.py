"""What a session machine is given: its bundle, its plans, its limits and times.

The machine itself is in `flagsplit.runtime.session_machine`; what makes these from a bundle is in
`flagsplit.runtime.session_bundle`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flagsplit.runtime.itinerary import PlannedStep
from flagsplit.runtime.liveness import LivenessOptions
from flagsplit.runtime.manifest import Tensor
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.state import State


@dataclass(frozen=True)
class SessionOptions:
    """Limits and times of a session.

    Attributes:
        window: requests on their way at once; more wait their turn.
        attempt_s: seconds after which an attempt counts as lost where nothing better is known, doubled with each
            further attempt.
        max_attempts: attempts before a request fails.
        adopt_s: how long a new bundle or policy waits for the workers before it is used without those that are silent.
        shun_s: how long two workers that cannot reach each other are led past each other; doubled each time, up to
            thirty times as long.
        liveness: heartbeats to the workers.
    """

    window: int = 8
    attempt_s: float = 15.0
    max_attempts: int = 16
    adopt_s: float = 10.0
    shun_s: float = 2.0
    liveness: LivenessOptions = field(default_factory=LivenessOptions)


@dataclass(frozen=True)
class SessionFacts:
    """What a session knows of its bundle.

    Attributes:
        bundle: its digest.
        tiers: names of the tiers; the session is the first.
        pool: the plans.
        steps: the segments of each plan.
        nominal: the state that the plans were made for.
        inputs: names of the graph inputs.
        outputs: names of the graph outputs.
        answers: by plan, the names under which it makes them, where those are others.
        lossy: names of the plans whose boundary tensors lose something.
        declared: dtype and shape of the graph outputs; those that are not here are not checked.
    """

    bundle: str
    tiers: tuple[str, ...]
    pool: Pool
    steps: Mapping[str, tuple[PlannedStep, ...]]
    nominal: State
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lossy: frozenset[str] = frozenset()
    declared: tuple[Tensor, ...] = ()

    def answers_of(self, plan: str) -> dict[str, str]:
        """For each graph output, the value that is it under a plan."""
        renamed = self.answers.get(plan, {})
        return {output: renamed.get(output, output) for output in self.outputs}

    def own_segments(self) -> dict[str, PlannedStep]:
        """The segments of the session's own tier, by id."""
        return {step.segment: step for steps in self.steps.values() for step in steps if step.tier == 0}
