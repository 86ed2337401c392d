"""Verifying a bundle: every segment of every artifact, and every plan from end to end, against the reference.

Segments are fed what the reference makes, so each stands for itself; from end to end errors add up. What departs is
bisected (`flagsplit.apps.diagnosis`). A host need not have what runs every artifact: those are not checked, and why is
said.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

from flagsplit.apps.deviation import Tolerance, deviations, worst
from flagsplit.apps.diagnosis import Departure, Diagnosis
from flagsplit.apps.fault import Fault
from flagsplit.apps.plan_graphs import graphs_of, is_lossy
from flagsplit.apps.reference_values import ReferenceValues, Values
from flagsplit.apps.tolerances import looseness, tolerance_of
from flagsplit.apps.verification import PlanCheck, Sample, SegmentCheck, StepError, Verdict, VerifyReport, farthest
from flagsplit.errors import BundleError, ConfigError, FlagsplitError, PolicyError
from flagsplit.flagir import Segment, Step
from flagsplit.runtime.bundle import REFERENCE_TARGET, Bundle
from flagsplit.runtime.chained import SharedParts
from flagsplit.runtime.manifest import TierArtifact
from flagsplit.splitter.plan import Plan
from flagsplit.targets.catalogue import TARGETS, get_target
from flagsplit.targets.interface import Array, Executable, LoadOptions

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class VerifyOptions:
    """Choices of a verification.

    Attributes:
        plans: names of the plans to look at; empty for all.
        tiers: names of the tiers whose artifacts to look at; empty for all.
        targets: targets whose artifacts to look at; empty for all.
        tolerances: what may differ, by target; "" for all that need not be exact.
        bisect: whether to look for where a segment that departs goes wrong.
        host: choices of this host.
    """

    plans: Collection[str] = ()
    tiers: Collection[str] = ()
    targets: Collection[str] = ()
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    bisect: bool = True
    host: LoadOptions = field(default_factory=lambda: LoadOptions(threads=1))


def verify_bundle(
    bundle: Bundle,
    samples: Sequence[Sample],
    options: VerifyOptions | None = None,
    progress: Progress = lambda _what, _share: None,
) -> VerifyReport:
    """Verify a bundle on samples.

    Args:
        bundle: the bundle.
        samples: at least one; checked inputs of it.
        options: further choices.
        progress: told what is being done and the share done.

    Raises:
        PolicyError: a plan, a tier or a target is none of the bundle's.
        BundleError: the bundle is damaged, or this flagsplit cuts it in another way.
    """
    options = options or VerifyOptions()
    _check_names(bundle, options)
    return _Verification(bundle, samples, options, progress).run()


@dataclass(frozen=True, eq=False)
class _Case:
    """A segment of an artifact, and the plans that run it."""

    tier: int
    made: TierArtifact
    segment: Segment
    plans: tuple[str, ...]


@dataclass(frozen=True)
class _Missed:
    """Why an artifact gave nothing."""

    verdict: Verdict
    reason: str


class _Verification:
    def __init__(self, bundle: Bundle, samples: Sequence[Sample], options: VerifyOptions, progress: Progress) -> None:
        self._bundle, self._samples, self._options, self._progress = bundle, samples, options, progress
        self._graphs = graphs_of(bundle)
        self._reference = ReferenceValues(bundle, self._graphs, samples, options.host)
        self._plans = [plan for plan in bundle.plans.pool.plans if not options.plans or plan.name in options.plans]
        self._agree: set[tuple[str, str, str]] = set()
        self._share = 0.0

    def run(self) -> VerifyReport:
        cases = list(self._cases())
        ways = [(plan, targets) for plan in self._plans for targets in self._ways(plan)]
        total = len(cases) + len(ways)
        segments: list[SegmentCheck] = []
        for at, case in enumerate(cases):
            self._tell(f"{self._bundle.tiers[case.tier]}/{case.made.target}", at / total)
            segments.append(self._check(case))
            if case.segment.id in case.made.chains:
                segments.append(self._check(case, case.made.chains[case.segment.id]))
        self._agree = {(each.tier, each.target, each.segment) for each in segments if each.verdict == "agrees"}
        plans = []
        for at, (plan, targets) in enumerate(ways):
            self._tell(plan.name, (len(cases) + at) / total)
            plans.append(self._end_to_end(plan, targets))
        return VerifyReport(
            str(self._bundle.path),
            self._bundle.digest,
            tuple(sample.label for sample in self._samples),
            all(sample.made_up for sample in self._samples),
            tuple(segments),
            tuple(plans),
        )

    def _tell(self, what: str, share: float | None = None) -> None:
        self._share = self._share if share is None else share
        self._progress(what, self._share)

    def _cases(self) -> Iterator[_Case]:
        for tier, name in enumerate(self._bundle.tiers):
            if self._options.tiers and name not in self._options.tiers:
                continue
            steps = [
                (plan.name, step.segment)
                for plan in self._plans
                for step in self._graphs.steps[plan.name]
                if step.tier == tier
            ]
            segments = {segment.id: segment for _, segment in steps}
            for made in self._bundle.facts.tiers[tier].artifacts:
                if self._options.targets and made.target not in self._options.targets:
                    continue
                for segment in segments.values():
                    if segment.id in made.entries or made.target == REFERENCE_TARGET:
                        plans = tuple(dict.fromkeys(plan for plan, each in steps if each.id == segment.id))
                        yield _Case(tier, made, segment, plans)

    def _check(self, case: _Case, chain: Sequence[str] = ()) -> SegmentCheck:
        """A segment on all samples, as a whole or as a chain of atoms."""
        made, segment = case.made, case.segment
        allowed, why = tolerance_of(made.target, made.options, self._options.tolerances), _not_runnable(made.target)
        emulated = not why and get_target(made.target).describe().runs_here == "emulated"
        tier = self._bundle.tiers[case.tier]
        blank = SegmentCheck(
            tier,
            made.target,
            segment.id,
            case.plans,
            allowed,
            "not checked",
            reason=why,
            atoms=len(chain),
            emulated=emulated,
        )
        if why:
            return blank
        given = self._reference.boundaries(case.plans[0])
        wanted = [{name: each[name] for name in segment.outputs} for each in given]
        bisects = self._options.bisect and not chain
        came = _attempt(lambda: self._run(case, chain, given))
        if isinstance(came, _Missed):
            looked_for = bisects and came.verdict == "failed"
            fault = self._diagnosed(case, given[0], wanted[0], allowed, broken=True) if looked_for else None
            return replace(blank, verdict=came.verdict, reason=came.reason, fault=fault)
        found = [deviations(expected, got, allowed) for expected, got in zip(wanted, came, strict=True)]
        outputs = farthest(found)
        at = next((at for at, each in enumerate(found) if any(one.departs for one in each)), None)
        if at is None:
            return replace(blank, verdict="agrees", outputs=outputs)
        fault = self._diagnosed(case, given[at], wanted[at], allowed) if bisects else None
        return replace(blank, verdict="departs", outputs=outputs, fault=fault)

    def _diagnosed(
        self, case: _Case, values: Values, wanted: Values, allowed: Tolerance, *, broken: bool = False
    ) -> Fault:
        inputs = {name: values[name] for name in case.segment.inputs}
        return self._diagnosis.of(Departure(case.tier, case.made, case.segment, inputs, wanted, allowed, broken))

    @cached_property
    def _diagnosis(self) -> Diagnosis:
        return Diagnosis(self._bundle, self._graphs, self._samples, self._options.host, self._tell)

    def _run(self, case: _Case, chain: Sequence[str], given: Sequence[Values]) -> list[Values]:
        with closing(self._load(case, chain)) as loaded:
            return [_asked(loaded, case.segment, each) for each in given]

    def _load(self, case: _Case, chain: Sequence[str]) -> Executable:
        host = LoadOptions(self._options.host.threads, case.made.target)
        if not chain:
            return self._bundle.load(case.tier, case.segment.id, host)
        parts = SharedParts(lambda part: self._bundle.load(case.tier, part, host))
        return parts.chain(chain, case.segment.inputs, case.segment.outputs)

    def _ways(self, plan: Plan) -> list[dict[str, str]]:
        """The targets that a plan is run with, by tier: each target wherever a tier has it, ONNX Runtime elsewhere."""
        used = [self._bundle.facts.tiers[tier] for tier in sorted({s.tier for s in self._graphs.steps[plan.name]})]
        names = dict.fromkeys(made.target for tier in used for made in tier.artifacts)
        ways = []
        for target in names:
            way = {
                tier.name: target if any(made.target == target for made in tier.artifacts) else REFERENCE_TARGET
                for tier in used
            }
            runs = {self._artifact(step, way).target for step in self._graphs.steps[plan.name]}
            if target in runs and (not self._options.targets or target in self._options.targets):
                ways.append(way)
        return ways

    def _end_to_end(self, plan: Plan, targets: Mapping[str, str]) -> PlanCheck:
        """All steps of a plan one after another, each on what those before it made."""
        allowed = self._allowed(plan, targets)
        for target in targets.values():
            why = _not_runnable(target)
            if why:
                return PlanCheck(plan.name, targets, allowed, "not checked", reason=why)
        came = _attempt(lambda: self._chained(plan, targets))
        if isinstance(came, _Missed):
            return PlanCheck(plan.name, targets, allowed, came.verdict, reason=came.reason)
        renamed = self._bundle.plans.answers.get(plan.name, {})
        found = []
        for values, wanted in zip(came, self._reference.answers(plan.name), strict=True):
            got = {name: values[renamed.get(name, name)] for name in wanted}
            found.append(deviations(wanted, got, allowed))
        outputs = farthest(found)
        verdict: Verdict = "departs" if any(each.departs for each in outputs) else "agrees"
        steps = tuple(self._step_errors(plan, targets, allowed, came))
        return PlanCheck(plan.name, targets, allowed, verdict, outputs, self._why_grown(steps), steps)

    def _why_grown(self, steps: Sequence[StepError]) -> str:
        """What to say of a plan that departs although the step with which it begins to agrees by itself."""
        at = next((at for at, step in enumerate(steps) if step.output.departs), None)
        if at is None or (steps[at].tier, steps[at].target, steps[at].segment) not in self._agree:
            return ""
        step, before = steps[at], max((each.output.norm_relative for each in steps[:at]), default=0.0)
        return (
            f"segment {step.segment} of {step.tier}/{step.target} agrees by itself; here it makes of an error of "
            f"{before:.2g}, which those before it leave, one of {step.output.norm_relative:.2g}"
        )

    def _step_errors(
        self, plan: Plan, targets: Mapping[str, str], allowed: Tolerance, came: Sequence[Values]
    ) -> Iterator[StepError]:
        for step in self._graphs.steps[plan.name]:
            found = []
            for values, wanted in zip(came, self._reference.boundaries(plan.name), strict=True):
                expected = {name: wanted[name] for name in step.segment.outputs}
                found += deviations(expected, values, allowed)
            tier, output = self._bundle.tiers[step.tier], worst(found)
            if output is not None:
                yield StepError(tier, self._artifact(step, targets).target, step.segment.id, output)

    def _chained(self, plan: Plan, targets: Mapping[str, str]) -> list[Values]:
        values = [dict(sample.tensors) for sample in self._samples]
        for step in self._graphs.steps[plan.name]:
            target = targets[self._bundle.tiers[step.tier]]
            host = LoadOptions(self._options.host.threads, target)
            with closing(self._bundle.load(step.tier, step.segment.id, host)) as loaded:
                for each in values:
                    each.update(_asked(loaded, step.segment, each))
        return values

    def _artifact(self, step: Step, targets: Mapping[str, str]) -> TierArtifact:
        return self._bundle.artifact_for(step.tier, step.segment.id, targets[self._bundle.tiers[step.tier]])

    def _allowed(self, plan: Plan, targets: Mapping[str, str]) -> Tolerance:
        """The loosest of the artifacts that run; of a lossy plan what its codecs lose besides, unless all are exact."""
        made = [self._artifact(step, targets) for step in self._graphs.steps[plan.name]]
        loosest = max((tolerance_of(one.target, one.options, self._options.tolerances) for one in made), key=looseness)
        if loosest.measure == "exact" or not is_lossy(plan):
            return loosest
        pairs = zip(self._reference.unsplit, self._reference.answers(plan.name), strict=True)
        lost = [one.norm_relative for exact, lossy in pairs for one in deviations(exact, lossy, loosest)]
        return loosest.widened(max(filter(math.isfinite, lost), default=0.0))


def _asked(loaded: Executable, step: Segment, values: Mapping[str, Array]) -> Values:
    """What a segment gives.

    Raises:
        BundleError: an output is missing.
    """
    came = loaded.run({name: values[name] for name in step.inputs})
    lacking = [name for name in step.outputs if name not in came]
    if lacking:
        raise BundleError(f"it does not give {lacking[0]!r}; build the bundle again")
    return {name: came[name] for name in step.outputs}


def _not_runnable(target: str) -> str:
    """Why artifacts of a target cannot run on this host, as far as that is known before one is loaded."""
    if target not in TARGETS:
        return f"this flagsplit has no target {target}"
    try:
        runs = get_target(target).describe().runs_here
    except ConfigError as error:
        return str(error)
    return f"nothing on this host runs artifacts of {target}" if runs == "no" else ""


def _attempt(action: Callable[[], list[Values]]) -> "list[Values] | _Missed":
    """What an artifact gives, or why it gives nothing: whatever an engine raises, the other artifacts are looked at."""
    try:
        return action()
    except ConfigError as error:
        return _Missed("not checked", str(error))
    except FlagsplitError as error:
        return _Missed("failed", str(error))
    except Exception as error:  # noqa: BLE001 - engines of chips raise what they like
        return _Missed("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _check_names(bundle: Bundle, options: VerifyOptions) -> None:
    for plan in options.plans:
        bundle.plan(plan)
    for tier in options.tiers:
        bundle.tier_index(tier)
    have = {made.target: None for tier in bundle.facts.tiers for made in tier.artifacts}
    unknown = [target for target in options.targets if target not in have]
    if unknown:
        raise PolicyError(f"expected a target of this bundle's artifacts ({', '.join(have)}), came {unknown[0]!r}")
