"""Planning without building: a model or a bundle, a line of tiers and an SLA to a plan and all that explains it.

Nothing is compiled or written. The pieces are those of a build (`flagsplit.apps.assembly`); how a report is printed is
in `flagsplit.apps.cli.plan`, how it is drawn in `flagsplit.apps.report.plan_svg`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.deployment import Deployment, describe_deployment
from flagsplit.apps.groundwork import BuildOptions, prepare
from flagsplit.apps.linked import expect_trips, link_program, program_of, tell_tokens
from flagsplit.apps.models import is_bundle
from flagsplit.apps.plan_views import view_of
from flagsplit.apps.profiled import load_profiles
from flagsplit.apps.recipe import recorded_sla
from flagsplit.errors import ConfigError
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.flagir.passes.float_products import float_products
from flagsplit.flagir.programs import Program
from flagsplit.runtime.bundle import GRAPH_NAME, Bundle, open_bundle
from flagsplit.splitter.baselines import Baseline
from flagsplit.splitter.calibration import Calibration
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.input_forms import InputTensor, forms_of
from flagsplit.splitter.links import Link
from flagsplit.splitter.pareto import Frontier
from flagsplit.splitter.pipeline import PlanningResult
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.pool import Pool
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.reasons import Barred, barred_blocks
from flagsplit.splitter.rivals import Rival
from flagsplit.splitter.sla import SLA
from flagsplit.splitter.solvers import Solution
from flagsplit.splitter.state import State
from flagsplit.splitter.thresholds import BreakingPoint, Flip, breaking_points
from flagsplit.splitter.what_if import what_if


@dataclass(frozen=True)
class PlanReport:
    """A plan and what explains it.

    Attributes:
        name: of the model.
        planning: pool, choice, reasons, solution and problem, in the world of the what-ifs if there are any.
        baselines: what to compare with, allowed or not.
        rivals: the runner-up, and the best plan on other tiers.
        flips: where another plan becomes best; empty unless asked for.
        breaks: where the plan breaks a bound; empty unless asked for.
        barred: why which operator cannot run where.
        before: the solution without the what-ifs, or None if there are none.
        shipped: the bundle's own plans, where nothing that they were made for was changed.
        notes: what was assumed.
        seconds: wall time by step.
        calibrations: by name of each tier with a profile, which of its blocks were measured.
        frontier: the plans that no other beats in everything, if asked for.
    """

    name: str
    planning: PlanningResult
    baselines: tuple[Baseline, ...]
    rivals: tuple[Rival, ...]
    flips: tuple[Flip, ...]
    breaks: tuple[BreakingPoint, ...]
    barred: tuple[Barred, ...]
    before: Solution | None
    shipped: Pool | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    frontier: Frontier | None = None

    @property
    def problem(self) -> Problem:
        """What was solved."""
        return self.planning.problem

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.planning.chosen.plan


@dataclass(frozen=True)
class Subject:
    """What is to be planned: a canonical graph on a line of tiers."""

    name: str
    model: ir.Model
    deployment: Deployment
    options: BuildOptions
    shipped: Pool | None = None
    notes: tuple[str, ...] = ()
    sla: SLA | None = None
    program: Program | None = None


def plan(
    model: Path | Source,
    tiers: Sequence[str] | None = None,
    *,
    devices: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    sla: SLA | None = None,
    options: BuildOptions | None = None,
    what_ifs: Sequence[tuple[str, str]] = (),
    thresholds: bool = True,
    frontier: bool = False,
) -> PlanReport:
    """Plan a model or a bundle.

    Args:
        model: a model file, or a bundle.
        tiers: names of the tiers, from the one that asks to the farthest; a bundle has its own.
        devices: device of each tier, by tier name; a bundle's own by default.
        links: links by tier or by two tiers; those that a bundle was planned for by default.
        sla: the policy; by default that of a bundle if it records it, else the least latency.
        options: sizes, catalogues, regions and costs, as for a build.
        what_ifs: changes of the world, see `flagsplit.splitter.what_if`.
        thresholds: whether to find out where another plan becomes best; it takes a moment where limits bind.
        frontier: whether to find the plans that no other beats in latency, energy and price.

    Raises:
        ModelError, BundleError: the file cannot be read.
        PolicyError: tiers, devices, links, SLA or what-ifs are wrong, or no plan can keep the SLA.
        ConfigError: no tiers for a model, or other ones for a bundle.
    """
    clock = _Clock()
    options = options or BuildOptions()
    subject = _subject(model, tiers, devices or {}, links or {}, options)
    clock.done("read")
    profiles = load_profiles(options.profiles, subject.deployment, options.numerics)
    ground = prepare(subject.model, subject.deployment, subject.options, profiles)
    view = view_of(ground, subject.deployment, subject.options, subject.program)
    problem = view.pose(sla or subject.sla or SLA())
    before = view.solve(problem) if what_ifs else None
    problem = what_if(problem, what_ifs, load_catalogue(options.catalogues).links)
    planning = view.plan(problem)
    clock.done("plan")
    forms = forms_of(_inputs(subject.model, ground.dims))
    compared, beside = view.compare(problem, planning, forms)
    clock.done("compare")
    chosen = planning.chosen.plan
    flips = view.flips(problem, chosen) if thresholds else ()
    breaks = breaking_points(problem, chosen) if thresholds else ()
    clock.done("thresholds")
    given = (devices, links, sla, what_ifs, options.dims, options.shapes, options.regions, options.profiles)
    changed = any(given) or bool(options.expected_tokens)
    return PlanReport(
        name=subject.name,
        planning=planning,
        baselines=compared,
        rivals=beside,
        flips=flips,
        breaks=breaks,
        barred=barred_blocks(problem),
        before=before,
        shipped=None if changed else subject.shipped,
        notes=tuple(_notes(subject, problem, pictures=bool(forms), own_policy=sla is None)),
        seconds=clock.seconds,
        calibrations=ground.profiled.calibrations,
        frontier=view.frontier(problem) if frontier else None,
    )


def _notes(subject: Subject, problem: Problem, *, pictures: bool, own_policy: bool) -> Iterator[str]:
    """What was assumed, and what is left out."""
    yield from subject.notes
    if len(problem.tiers) > 1 and not pictures and problem.steps == 1:
        yield "no input is a picture or float32, so there is no baseline with compressed inputs"
    if subject.shipped is not None and own_policy:
        if subject.sla is None:
            yield "the bundle does not record its SLA: this is for the least latency; give another with --sla"
        else:
            yield "without --sla the policy is the one that the bundle was built under"


def _subject(
    model: Path | Source,
    tiers: Sequence[str] | None,
    devices: Mapping[str, str],
    links: Mapping[str, str],
    options: BuildOptions,
) -> Subject:
    source = model if isinstance(model, Source) else Source(model)
    if source.path is not None and is_bundle(source.path):
        return subject_of_bundle(open_bundle(source.path), tiers, devices, links, options)
    if tiers is None:
        raise ConfigError("expected the tiers to plan for, such as --tiers phone,edge,cloud; only a bundle has its own")
    deployment = describe_deployment(tiers, devices, links, options.catalogues, options.regions, options.targets)
    program = program_of(source)
    if program is not None:
        linked = link_program(program, options)
        name = program.facts.name
        return Subject(name, linked.model, deployment, linked.options, notes=linked.notes, program=program)
    graph = source.read()
    flagir.canonicalize(graph)
    if options.float_products:
        float_products(graph)
    expect_trips(graph, options.expected_tokens)
    flagir.check(graph)
    return Subject(source.name, graph, deployment, options)


def subject_of_bundle(
    bundle: Bundle,
    tiers: Sequence[str] | None,
    devices: Mapping[str, str],
    links: Mapping[str, str],
    options: BuildOptions,
) -> Subject:
    if tiers is not None and tuple(tiers) != bundle.tiers:
        raise ConfigError(f"expected the bundle's own tiers {','.join(bundle.tiers)} or none, came {','.join(tiers)}")
    own = {tier.name: tier.device for tier in bundle.facts.tiers}
    targets = {tier.name: tuple(made.target for made in tier.artifacts) for tier in bundle.facts.tiers}
    deployment = describe_deployment(
        bundle.tiers, {**own, **devices}, links, options.catalogues, options.regions, {**targets, **options.targets}
    )
    nominal = bundle.plans.nominal
    recorded = [
        deployment.links[i] if name in links else _recorded_link(nominal, i) for i, name in enumerate(bundle.tiers[1:])
    ]
    notes = []
    if any(name not in links for name in bundle.tiers[1:]):
        notes.append("links without --link are those that the bundle was planned for; their medium is taken for wifi")
    if len(nominal.up_s_per_byte) > len(recorded) and not deployment.bypasses:
        notes.append("the bundle was planned with by-passes, which it does not name: give them with --link")
    model = flagir.load((bundle.folder / GRAPH_NAME).parent)
    program = None if bundle.program is None else bundle.program.program()
    if program is not None and options.expected_tokens:
        tell_tokens(model, options.expected_tokens)
    elif program is None:
        expect_trips(model, options.expected_tokens)
    if bundle.program is not None and not options.expected_tokens:
        options = replace(options, expected_tokens=bundle.program.expected_tokens)
    return Subject(
        name=bundle.facts.model.name,
        model=model,
        program=program,
        deployment=replace(deployment, links=tuple(recorded)),
        options=_sizes_of(bundle, options),
        shipped=bundle.plans.pool,
        notes=tuple(notes),
        sla=recorded_sla(bundle),
    )


def _sizes_of(bundle: Bundle, options: BuildOptions) -> BuildOptions:
    """The bundle's nominal sizes where the user gives none; shapes say all sizes."""
    if options.shapes:
        return options
    return replace(options, dims={**bundle.facts.nominal_dims, **options.dims})


def _recorded_link(nominal: State, i: int) -> Link:
    """A link that costs what a bundle's nominal state says."""
    return Link(
        name="as in the bundle",
        up_bytes_per_s=1 / nominal.up_s_per_byte[i],
        down_bytes_per_s=1 / nominal.down_s_per_byte[i],
        rtt_s=nominal.up_s_per_message[i] + nominal.down_s_per_message[i],
        source="the bundle",
    )


def _inputs(model: ir.Model, dims: Mapping[str, int]) -> list[InputTensor]:
    found = []
    for value in model.graph.inputs:
        if value.dtype is not None and value.shape is not None and value.dtype != ir.DataType.STRING:
            shape = tuple(dim if isinstance(dim, int) else dims.get(str(dim.value), 1) for dim in value.shape)
            found.append(InputTensor(value.name or "", value.dtype.numpy().name, shape))
    return found


class _Clock:
    """Times the steps."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = now - self._last
        self._last = now
