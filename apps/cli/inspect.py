"""`flagsplit inspect`: what is in a bundle."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from flagsplit.apps.cli.build import PLAN_COLUMNS
from flagsplit.apps.cli.common_options import AsJson, BundlePath
from flagsplit.apps.cli.output import console, print_json, say, shape_text, size_text, table
from flagsplit.apps.cli.plans import plan_data, plan_notes, plan_rows
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.program_parts import FOLDER, ProgramParts


def command(
    bundle: BundlePath,
    as_json: AsJson = False,
) -> None:
    """Show a bundle: its tiers, plans and sizes. Every member is verified on the way."""
    opened = open_bundle(bundle)
    if as_json:
        print_json(_data(opened))
    else:
        _show(opened)


def _data(bundle: Bundle) -> dict[str, Any]:
    facts, pool = bundle.facts, bundle.plans.pool
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "format": list(facts.format),
        "built_with": facts.built_with,
        "model": facts.model.model_dump(),
        "size_bytes": bundle.path.stat().st_size,
        "weights_bytes": facts.weights_bytes,
        "inputs": [tensor.model_dump() for tensor in facts.inputs],
        "outputs": [tensor.model_dump() for tensor in facts.outputs],
        "nominal_dims": facts.nominal_dims,
        "sla": facts.sla,
        "tiers": [
            {
                "name": tier.name,
                "device": tier.device,
                "targets": [artifact.target for artifact in tier.artifacts],
                "segments": len(bundle.segments_of(index)),
                **({"reports": reports} if (reports := _reports(bundle, index)) else {}),
            }
            for index, tier in enumerate(facts.tiers)
        ],
        "plans": [plan_data(plan) for plan in pool.plans],
        "absent": dict(pool.absent),
        "program": None if bundle.program is None else _program_data(bundle.program, _own_bytes(bundle)),
        "reasons": list(bundle.plans.reasons),
    }


def _show(bundle: Bundle) -> None:
    out, facts = console(), bundle.facts
    sizes = f"{size_text(bundle.path.stat().st_size)}, weights {size_text(facts.weights_bytes)}"
    say(out, f"{bundle.path.name}: {sizes}, model {facts.model.name}, {facts.built_with}, digest {bundle.digest[:12]}")
    say(out)
    tensors = [("input", t.name, t.dtype, shape_text(t.shape)) for t in facts.inputs]
    tensors += [("output", t.name, t.dtype, shape_text(t.shape)) for t in facts.outputs]
    out.print(table("Tensors", ("", "name", "dtype", "shape"), tensors, left=4))
    if facts.nominal_dims:
        say(out, "planned for " + ", ".join(f"{name}={size}" for name, size in facts.nominal_dims.items()))
    say(out, _sla_text(facts.sla))
    out.print()
    rows = [
        (tier.name, tier.device, ", ".join(a.target for a in tier.artifacts), len(bundle.segments_of(index)))
        for index, tier in enumerate(facts.tiers)
    ]
    out.print(table("Tiers", ("tier", "device", "target", "segments"), rows, left=3))
    for index, tier in enumerate(facts.tiers):
        for target, told in _reports(bundle, index).items():
            for segment, part in told["segments"].items():
                say(out, f"{tier.name}, {target}, {segment}: {part['summary']} ({told['basis']})")
    out.print()
    out.print(table("Plans (modelled)", PLAN_COLUMNS, plan_rows(bundle.plans.pool.plans), left=2))
    for note in plan_notes(bundle.plans.pool.plans):
        say(out, note)
    out.print()
    if bundle.program is not None:
        _show_program(out, bundle, bundle.program)
    for sentence in bundle.plans.reasons:
        say(out, sentence)


def _reports(bundle: Bundle, tier: int) -> dict[str, Mapping[str, Any]]:
    """By target, what it tells of a tier's segments, if anything."""
    told = {made.target: bundle.stored(made).report() for made in bundle.facts.tiers[tier].artifacts}
    return {target: report for target, report in told.items() if report is not None}


def _program_data(program: ProgramParts, own_bytes: int) -> dict[str, Any]:
    facts = program.facts
    return {
        "name": facts.name,
        "own_bytes": own_bytes,
        "kind": facts.kind,
        "license": facts.license,
        "layers": facts.layers,
        "vocabulary": facts.vocabulary,
        "max_positions": facts.max_positions,
        "expected_tokens": program.expected_tokens,
        "plans": {
            name: {
                "loop_tier": parts.loop_tier,
                "boundary": [tensor.model_dump() for tensor in parts.boundary],
                "layers": parts.layers,
            }
            for name, parts in program.plans.items()
        },
        "unserved": dict(program.unserved),
        "layer_plans": [] if program.layer_plans is None else [plan_data(plan) for plan in program.layer_plans.plans],
    }


def _own_bytes(bundle: Bundle) -> int:
    """Of the members that a bundle has for its program alone."""
    return sum(size for name, size in bundle.facts.sizes.items() if name.startswith(f"{FOLDER}/"))


def _show_program(out: Console, bundle: Bundle, program: ProgramParts) -> None:
    facts = program.facts
    own = size_text(_own_bytes(bundle))
    say(
        out,
        f"Program {facts.name}: {facts.kind}, {facts.layers} layers, {facts.vocabulary} tokens, at most "
        f"{facts.max_positions} in a stream, {program.expected_tokens} expected; {own} beside the shared weights; "
        f"license {facts.license}",
    )
    rows = [
        (
            name,
            bundle.tiers[parts.loop_tier],
            ", ".join(f"{tensor.name} {shape_text(tensor.shape)}" for tensor in parts.boundary) or "tokens alone",
        )
        for name, parts in program.plans.items()
    ]
    out.print(table("Streams", ("plan", "loop on", "what crosses"), rows, left=3))
    for name, why in program.unserved.items():
        say(out, f"no stream under {name}: {why}")
    if program.layer_plans is not None:
        out.print()
        rows_of = plan_rows(program.layer_plans.plans)
        out.print(table("Plans that divide its layers (modelled)", PLAN_COLUMNS, rows_of, left=2))
    out.print()


def _sla_text(sla: dict[str, Any] | None) -> str:
    """The recorded policy in one line; as it was recorded, so one with rules of a newer flagsplit is shown too."""
    if sla is None:
        return "its SLA is not recorded"
    return f"built under the SLA {json.dumps(sla, ensure_ascii=False)}" if sla else "built for the least latency"
