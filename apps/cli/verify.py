"""`flagsplit verify`: every artifact of a bundle against the reference, and where one goes wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flagsplit.apps.cli.common_options import AsJson, BundlePath, InputDim, InputSeed, Threads
from flagsplit.apps.cli.options import sizes
from flagsplit.apps.cli.output import console, print_json, progress_bar, say, shape_text, table
from flagsplit.apps.deviation import Deviation, worst
from flagsplit.apps.fault import Cause, Fault, Growth
from flagsplit.apps.verification import PlanCheck, SegmentCheck, VerifyReport
from flagsplit.apps.verify import verify
from flagsplit.errors import ConfigError

_ORDER = ("failed", "departs", "not checked", "agrees")
_FINDINGS = {
    Cause.STORED: "what is stored is not what a rebuild gives, which is right",
    Cause.NODE: "the node {departs} by itself, on the inputs that the reference gives it",
    Cause.TOGETHER: "these nodes {depart} where they are compiled together",
    Cause.GRADUAL: "no node departs by itself: the error grows until it is too much",
    Cause.UNKNOWN: "where it goes wrong could not be found",
}


def command(
    bundle: BundlePath,
    input_file: Annotated[
        list[Path] | None, typer.Option("--input", metavar="FILE", help="Inputs of a request by name, .npz.")
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A picture or recording of flagsplit zoo list, or a WAV file."),
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="How many requests to make up; 1 if nothing else is given.")
    ] = None,
    seed: InputSeed = 0,
    dim: InputDim = None,
    plan: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A plan to look at; all by default.")] = None,
    tier: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A tier to look at; all by default.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A target whose artifacts to look at; all by default.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="[TARGET=]NUMBER", help="What may differ: 1e-3, cosine:0.999 or exact; docs/verify.md."),
    ] = None,
    bisect: Annotated[bool, typer.Option("--bisect/--no-bisect", help="Look for the node that departs.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="What cannot be checked here counts as wrong.")] = False,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Compare every artifact with the ONNX reference. Exit code 0: all agree, 1: something departs."""
    if dim and random is None and (input_file or sample):
        raise ConfigError("--dim is for made-up inputs, those given have their shapes; add --random or leave it out")
    if random == 0 and not input_file and not sample:
        raise ConfigError("--random 0 leaves nothing to verify on; give --input or --sample")
    with progress_bar(quiet=as_json) as progress:
        report = verify(
            bundle,
            input_file or [],
            samples=sample or [],
            random=random,
            seed=seed,
            dims=sizes("--dim", dim),
            plans=plan or [],
            tiers=tier or [],
            targets=target or [],
            tolerances=tolerance or [],
            bisect=bisect,
            threads=threads,
            progress=progress,
        )
    wrong = report.departs or not report.checked or (strict and bool(report.unchecked))
    if as_json:
        print_json({**report.to_data(), "strict": strict, "passed": not wrong})
    else:
        _show(console(), report, strict=strict)
    if wrong:
        raise typer.Exit(1)


def _show(out: Console, report: VerifyReport, *, strict: bool) -> None:
    say(out, f"{report.bundle}, digest {report.digest[:12]}, on {', '.join(report.samples)}")
    if report.made_up:
        say(out, "random inputs are a weak test: data reaches what they do not; give --input or --sample")
    say(out)
    columns = ("tier", "target", "verdict", "tolerance", "segments", "worst norm", "max abs", "cosine")
    out.print(table("Artifacts", columns, list(_artifact_rows(report.segments)), left=4))
    say(out)
    plan_columns = ("plan", "targets", "verdict", "tolerance", "worst norm", "max abs", "cosine")
    out.print(table("Plans from end to end", plan_columns, [_plan_row(each) for each in report.plans], left=4))
    for check in report.segments:
        if check.verdict in ("departs", "failed"):
            say(out)
            _show_departure(out, check)
    for each in report.plans:
        if each.verdict == "failed":
            say(out, f"plan {each.plan} failed: {each.reason}")
        if each.verdict == "departs" and len(each.steps) > 1:
            say(out)
            rows = [(one.tier, one.target, one.segment, f"{one.output.norm_relative:.2g}") for one in each.steps]
            out.print(table(f"Plan {each.plan}, step by step", ("tier", "target", "segment", "norm"), rows, left=3))
            if each.reason:
                say(out, each.reason)
    for why in report.unchecked:
        say(out, f"not checked: {why}")
    say(out)
    say(out, _sentence(report, strict=strict))


def _artifact_rows(checks: Sequence[SegmentCheck]) -> list[tuple[object, ...]]:
    groups: dict[tuple[str, str, bool], list[SegmentCheck]] = {}
    for check in checks:
        groups.setdefault((check.tier, check.target, check.atoms > 0), []).append(check)
    rows: list[tuple[object, ...]] = []
    for (tier, target, atoms), group in groups.items():
        verdict = min((each.verdict for each in group), key=_ORDER.index)
        count = sum(each.verdict == verdict for each in group)
        text = verdict if count == len(group) else f"{count} of {len(group)} {verdict}"
        name = f"{target}, as atoms" if atoms else f"{target}, emulated" if group[0].emulated else target
        figures = _figures([one for each in group for one in each.outputs])
        rows.append((tier, name, text, group[0].allowed, len(group), *figures))
    return rows


def _plan_row(check: PlanCheck) -> tuple[object, ...]:
    targets = ", ".join(f"{tier}={target}" for tier, target in check.targets.items())
    return check.plan, targets, check.verdict, check.allowed, *_figures(list(check.outputs))


def _figures(outputs: list[Deviation]) -> tuple[str, str, str]:
    found = worst(outputs)
    if found is None:
        return "", "", ""
    return (
        f"{found.norm_relative:.2g}",
        f"{max(each.max_abs for each in outputs):.2g}",
        f"{min(each.cosine for each in outputs):.6f}",
    )


def _show_departure(out: Console, check: SegmentCheck) -> None:
    form = f", as {check.atoms} atoms" if check.atoms else ""
    say(out, f"{check.tier}/{check.target}: segment {check.segment}{form} of plan {', '.join(check.plans)}")
    if check.reason:
        say(out, f"  failed: {check.reason}")
    for each in check.outputs:
        if each.departs:
            say(out, f"  output {_text(each)}")
    if check.fault is not None:
        _show_fault(out, check.fault, fails=check.verdict == "failed")


def _show_fault(out: Console, fault: Fault, *, fails: bool) -> None:
    departs, depart = ("fails", "fail") if fails else ("departs", "depart")
    say(out, f"  {_FINDINGS[fault.cause].format(departs=departs, depart=depart)}")
    for node in fault.nodes:
        block = f", block {node.block}" if node.block else ""
        say(out, f"  node {node.name} ({node.op_type}{block})")
        for value in node.inputs:
            say(out, f"    reads {value}")
    if fault.nodes and fault.output is not None:
        say(out, f"  its output {_text(fault.output)}")
    if fault.growth:
        columns = ("  up to node", "operator", "norm of its output", "of the segment's")
        out.print(table("", columns, [_growth_row(row) for row in fault.growth], left=2))
    if fault.note:
        say(out, f"  {fault.note}")
    if fault.advice:
        say(out, f"  {fault.advice}")


def _growth_row(row: Growth) -> tuple[str, str, str, str]:
    own = f"{row.output.norm_relative:.2g}" if row.output is not None else ""
    return f"  {row.node.name}", row.node.op_type, own, f"{row.effect.norm_relative:.2g}"


def _text(found: Deviation) -> str:
    text = f"{found.name} {found.dtype} {shape_text(found.shape)}: "
    text += f"norm {found.norm_relative:.3g}, max abs {found.max_abs:.3g}, cosine {found.cosine:.6f}, "
    text += f"{found.differing} elements differ"
    if found.first is not None:
        text += f"; first at {list(found.first.index)}: {_number(found.first.came)} instead of "
        text += _number(found.first.expected)
    return text + (f"; {found.note}" if found.note else "")


def _number(value: float | str) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _sentence(report: VerifyReport, *, strict: bool) -> str:
    if report.departs:
        return f"{report.wrong} of {len(report.segments) + len(report.plans)} checks depart from the reference"
    if not report.checked:
        return "nothing could be checked on this host"
    if report.unchecked and strict:
        return "what was checked agrees, and not all could be: wrong under --strict"
    return f"all {report.checked} segments that were checked agree with the reference"
