"""What a plan's loops cost, in words: how often they run, what a trip takes, what they hold, where they run."""

from flagsplit.flagir.blockgraph import Block, LoopWork
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem

_KNOWN = {
    "said": "expected",
    "constant": "at most, as the graph says",
    "assumed": "assumed, for nothing says how many",
}


def loop_sentences(problem: Problem, plan: Plan) -> list[str]:
    """A sentence for each loop of a plan."""
    return [_sentence(problem, plan, block, loop) for block in problem.graph.blocks for loop in block.loops]


def _sentence(problem: Problem, plan: Plan, block: Block, loop: LoopWork) -> str:
    here = plan.placement[block.index]
    trips = max(loop.trips, 1)
    each = ", ".join(
        f"{float(problem.costs.seconds[block.index, k]) / trips * 1e3:.3g} ms on {name}"
        for k, name in enumerate(problem.tier_names)
        if problem.constraints.allowed[block.index, k]
    )
    streams = problem.sla.streams.get(plan.tiers[here], 1)
    of = f" for each of {streams} streams" if streams > 1 else ""
    read = f", beside {_size(loop.captured_bytes)} that every trip reads" if loop.captured_bytes else ""
    trip = "so that a request passes the links once, not once a trip" if here else "and no trip passes a link"
    return (
        f"Loop {loop.name}: {loop.trips} trips {_KNOWN.get(loop.basis, loop.basis)}, a token each in a decoder, "
        f"of {each}; {_size(loop.growth_bytes)} of state each, {_size(loop.last_state_bytes)} in the end{of}{read}; "
        f"it stays on {plan.tiers[here]} with its state, {trip}."
    )


def _size(size_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes:.0f} B"
