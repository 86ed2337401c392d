"""`flagsplit plan`: what would run where, and why; nothing is compiled or written but the drawing."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flagsplit.apps.cli.build import PLAN_COLUMNS
from flagsplit.apps.cli.common_options import AsJson, Catalogue
from flagsplit.apps.cli.options import changes, names, pairs, sla_file
from flagsplit.apps.cli.output import console, print_json, say, size_text, table
from flagsplit.apps.cli.planning_options import (
    MODEL_HELP,
    TIERS_HELP,
    Choice,
    Devices,
    Dim,
    ExpectedTokens,
    FloatProducts,
    Link,
    MaxTokens,
    Profile,
    Region,
    Shape,
    Sla,
    Target,
    Trusted,
    planning_options,
)
from flagsplit.apps.cli.plans import calibration_texts, plan_rows
from flagsplit.apps.outputs import check_output
from flagsplit.apps.planning import PlanReport, plan
from flagsplit.apps.report.data import report_data
from flagsplit.apps.report.figures import basis, by_link, by_tier, scope_energy_mj, split_ms, times_basis, totals
from flagsplit.apps.report.plan_svg import draw_plan
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.splitter.pareto import Frontier
from flagsplit.splitter.plan import Plan
from flagsplit.splitter.rivals import breaking_sentences, flip_sentences, no_flips_because, rival_sentences

_MOST_POINTS = 20
_WHAT_IF = "Another world: cloud=5mbit/80ms, cloud=5mbit, cloud=/80ms, edge=slower:3, edge=dead, cloud=price:2."


def command(
    model: Annotated[Path, typer.Argument(help=f"{MODEL_HELP} Or a bundle.")],
    tiers: Annotated[str | None, typer.Option(help=TIERS_HELP)] = None,
    devices: Devices = None,
    link: Link = None,
    region: Region = None,
    target: Target = None,
    sla: Sla = None,
    dim: Dim = None,
    shape: Shape = None,
    catalogue: Catalogue = None,
    what_if: Annotated[list[str] | None, typer.Option(metavar="WHAT=CHANGE", help=_WHAT_IF)] = None,
    profile: Profile = None,
    choice: Choice = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also list the plans that none beats in latency, energy and price.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why, what comes next, and what would change it.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the plan.")] = None,
    float_products: FloatProducts = False,
    expected_tokens: ExpectedTokens = 0,
    max_tokens: MaxTokens = 0,
    trusted: Trusted = False,
    as_json: AsJson = False,
) -> None:
    """Plan a model or a bundle: the best plan, its figures, the baselines beside it, and the reasons."""
    options = planning_options(
        dim=dim,
        shape=shape,
        catalogue=catalogue,
        region=region,
        target=target,
        choice=choice,
        profile=profile,
        float_products=float_products,
        expected_tokens=expected_tokens,
        max_tokens=max_tokens,
    )
    if svg is not None:
        check_output(svg, model, sla)
    report = plan(
        Source(model, trusted=trusted),
        None if tiers is None else names("--tiers", tiers),
        devices=pairs("--devices", devices, commas=True),
        links=pairs("--link", link),
        sla=sla_file(sla),
        options=options,
        what_ifs=changes("--what-if", what_if),
        thresholds=explain or as_json,
        frontier=pareto,
    )
    if svg is not None:
        svg.write_text(draw_plan(report), encoding="utf-8")
    if as_json:
        print_json({**report_data(report), "svg": None if svg is None else str(svg)})
        return
    _show(report)
    if explain:
        _explain(report)
    if svg is not None:
        say(console(), f"drawn: {svg}")


def _show(report: PlanReport) -> None:
    out, chosen, problem = console(), report.plan, report.problem
    kind = basis(chosen)
    say(out, f"{report.name}: {chosen.name}, {chosen.latency_s(problem.nominal) * 1e3:.4g} ms {kind}")
    say(out, f"{report.planning.solution.certificate}{_before(report)}")
    for note in (report.planning.solution.note, *calibration_texts(report.calibrations), *report.notes):
        if note:
            say(out, f"note: {note}")
    say(out)
    columns = ("tier", "device", "times", "blocks", "ms", "mJ", "resident", "USD/1000", "g CO2/1000", "cold start ms")
    rows = [
        (
            each.tier,
            each.device,
            times_basis(report.calibrations.get(each.tier)),
            each.blocks,
            f"{each.busy_ms:.4g}",
            f"{each.energy_mj:.4g}",
            size_text(each.resident_bytes),
            f"{each.price_per_1k_usd:.3g}",
            f"{each.carbon_per_1k_g:.3g}",
            f"{each.cold_start_ms:.3g}",
        )
        for each in by_tier(problem, chosen)
    ]
    out.print(table(f"By tier ({kind})", columns, rows, left=3))
    _show_links(out, report, kind)
    say(out)
    figures = [(each.name, f"{each.value:.4g}", each.unit) for each in totals(problem, chosen)]
    out.print(table(f"One request ({kind})", ("figure", "value", "unit"), figures))
    say(out)
    _show_baselines(out, report, kind)
    if report.shipped is not None:
        say(out)
        out.print(table("The bundle's own plans (modelled)", PLAN_COLUMNS, plan_rows(report.shipped.plans), left=2))
    if report.frontier is not None:
        _show_frontier(report.frontier)


def _before(report: PlanReport) -> str:
    if report.before is None:
        return ""
    now, then = report.before, report.planning.solution
    same = now.placement == report.plan.placement
    return (
        f"; without --what-if {'the same plan' if same else 'another plan'}, "
        f"objective {now.objective:.4g} instead of {then.objective:.4g}"
    )


def _show_links(out: Console, report: PlanReport, kind: str) -> None:
    links = by_link(report.problem, report.plan)
    if links:
        rows = [
            (
                each.link,
                ", ".join(each.codecs) or "-",
                size_text(each.up_bytes),
                size_text(each.down_bytes),
                f"{each.messages:g}",
                f"{each.up_ms:.4g}",
                f"{each.down_ms:.4g}",
            )
            for each in links
        ]
        say(out)
        columns = ("link", "codec", "up", "down", "messages", "ms up", "ms down")
        out.print(table(f"By link ({kind})", columns, rows, left=2))


def _show_baselines(out: Console, report: PlanReport, kind: str) -> None:
    first = report.problem.tier_names[0]
    energy = f"mJ of {first}" if report.problem.sla.energy_scope == "first" else "mJ of all"
    columns = ("plan", "allowed", "ms", "computing", "transfer", energy, "USD/1000")
    rows = [_row(report, report.plan, "chosen")]
    rows += [_row(report, each.plan, "yes" if each.allowed else "no") for each in report.baselines]
    out.print(table(f"Compared ({kind})", columns, rows, left=2))
    for why, plans in _grouped((each.reason, each.plan.name) for each in report.baselines).items():
        say(out, f"not allowed: {', '.join(plans)}: {why}")
    for note, plans in _grouped((each.note, each.plan.name) for each in report.baselines).items():
        say(out, f"note: {', '.join(plans)}: {note}")


def _grouped(pairs: Iterable[tuple[str | None, str]]) -> dict[str, list[str]]:
    """Names by what is said of them; what says nothing is left out."""
    found: dict[str, list[str]] = {}
    for said, name in pairs:
        if said:
            found.setdefault(said, []).append(name)
    return found


def _row(report: PlanReport, each: Plan, allowed: str) -> tuple[str, ...]:
    computing, transfer = split_ms(report.problem, each)
    return (
        each.name,
        allowed,
        f"{computing + transfer:.4g}",
        f"{computing:.4g}",
        f"{transfer:.4g}",
        f"{scope_energy_mj(report.problem, each):.4g}",
        f"{each.predicted.price_per_1k_usd:.3g}",
    )


def _show_frontier(frontier: Frontier) -> None:
    out = console()
    whole = "complete" if frontier.complete else "not proven complete"
    points = frontier.points
    if len(points) > _MOST_POINTS:
        step = (len(points) - 1) / (_MOST_POINTS - 1)
        points = tuple(points[round(i * step)] for i in range(_MOST_POINTS))
        whole += f", {_MOST_POINTS} of {len(frontier.points)}, all with --json"
    rows = [(each.plan.name, *(f"{each.figures[name]:.4g}" for name in frontier.measures)) for each in points]
    say(out)
    out.print(table(f"No plan beats these in everything (modelled, {whole})", ("plan", *frontier.measures), rows))


def _explain(report: PlanReport) -> None:
    out, problem, chosen = console(), report.problem, report.plan
    _list(out, "Why", report.planning.reasons)
    _list(out, "What comes next", rival_sentences(problem, chosen, report.rivals))
    flips = flip_sentences(problem, chosen, report.flips) or (no_flips_because(problem),)
    _list(out, "What would change it, one at a time", (*flips, *breaking_sentences(report.breaks)))
    say(out)
    rows = [(each.operator, each.tier, each.reason, each.example, each.count) for each in report.barred]
    if rows:
        columns = ("operator", "not on", "because", "for example", "blocks")
        out.print(table("What cannot run where", columns, rows, left=4))
    else:
        say(out, "Every operator can run on every tier.")


def _list(out: Console, title: str, lines: Sequence[str]) -> None:
    say(out)
    out.print(title, style="bold")
    for line in lines:
        say(out, f"- {line}")
