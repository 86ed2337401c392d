"""Decoder-only programs planned between their layers: the problem, the plan, and what it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from flagsplit.apps.deployment import Deployment
from flagsplit.flagir import BlockGraph
from flagsplit.flagir.programs import Program
from flagsplit.flagir.programs.chain import layer_chain
from flagsplit.splitter.baselines import Baseline
from flagsplit.splitter.costs import Handicaps, model_costs
from flagsplit.splitter.layer_plans import every_division
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem, make_problem
from flagsplit.splitter.rivals import Rival, score_of
from flagsplit.splitter.sla import INPUTS, SLA


def is_divisible(program: Program | None) -> bool:
    """Whether a program's loop can be divided between layers."""
    return program is not None and program.facts.kind == "decoder-only"


@dataclass(frozen=True)
class Answer:
    """What plans over layers are made for: tokens of the prompt, and those that are expected of the answer."""

    prompt: int
    tokens: int


def pose_layers(program: Program, answer: Answer, linked: BlockGraph, deployment: Deployment, sla: SLA) -> Problem:
    """The placement problem of a decoder's layers.

    Args:
        program: a decoder without encoder.
        answer: its length.
        linked: the program as one model, which some rules of the SLA may be for.
        deployment: tiers and links; by-passes are left aside, and tiers with chips run a decoder beside these.
        sla: the policy.

    Raises:
        PolicyError: the SLA contradicts itself, the layers or the tiers.
    """
    chain = layer_chain(program, answer.prompt, answer.tokens)
    tiers, links = deployment.tiers, deployment.links
    chips = [tier.name for tier, chosen in zip(tiers, deployment.targets, strict=True) if chosen.are_chips]
    costs = model_costs(chain, tiers, links, dict.fromkeys(chips, Handicaps(beside=range(len(chain.blocks)))))
    problem = make_problem(chain, tiers, links, rules_for(chain, sla, linked), costs=costs)
    return replace(problem, steps=answer.tokens + 1)


def rules_for(graph: BlockGraph, sla: SLA, other: BlockGraph) -> SLA:
    """An SLA without pins and values to keep that only the other view of a program has: its layers, or it linked.

    What neither has stays, for the error that it is.
    """
    pins = {glob: tier for glob, tier in sla.pins.items() if _has(graph, glob) or not _has(other, glob)}
    keep_on = {name: tier for name, tier in sla.keep_on.items() if _keeps(graph, name) or not _keeps(other, name)}
    return sla.model_copy(update={"pins": pins, "keep_on": keep_on})


def _has(graph: BlockGraph, glob: str) -> bool:
    names = (name for block in graph.blocks for name in (block.name, *block.nodes, *block.op_types))
    return any(fnmatchcase(name, glob) for name in names)


def _keeps(graph: BlockGraph, value: str) -> bool:
    return value == INPUTS or any(value == each.name for each in graph.values)


def compared_with(problem: Problem, singles: Sequence[Baseline], chosen: Plan) -> tuple[Baseline, ...]:
    """The single tiers, and every division between the first tier and the last but the chosen one."""
    return (*singles, *(each for each in every_division(problem) if each.plan.placement != chosen.placement))


def layer_rivals(problem: Problem, chosen: Plan, compared: Sequence[Baseline]) -> tuple[Rival, ...]:
    """The runner-up, and the best plan on other tiers if that is another one."""
    mine = max(score_of(problem, chosen), 1e-300)
    allowed = [each.plan for each in compared if each.allowed and each.plan.placement != chosen.placement]
    ranked = sorted(allowed, key=lambda plan: score_of(problem, plan))
    best = ranked[:1]
    elsewhere = [plan for plan in ranked if plan.used_tiers != chosen.used_tiers][:1]
    return tuple(
        Rival(plan, max(0.0, score_of(problem, plan) / mine - 1), plan not in best)
        for plan in dict.fromkeys([*best, *elsewhere])
    )
