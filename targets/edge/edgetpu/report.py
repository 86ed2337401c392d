"""`edgetpu.json`: what of each segment is mapped, why no more, what memory holds, and the modelled time of a run."""

import json
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

from flagsplit.targets.edge.edgetpu.compiler import Log
from flagsplit.targets.edge.edgetpu.facts import SRAM_BYTES
from flagsplit.targets.edge.edgetpu.mapping import Mapping

NAME = "edgetpu.json"


def to_json(parts: Table[str, Sequence[Mapping]], logs: Table[str, Sequence[Log]]) -> bytes:
    """The bytes of the report.

    Args:
        parts: by segment, what becomes of each of its parts, one for each chip.
        logs: the same from Coral's compiler, where it ran.
    """
    found = {
        name: {
            "summary": summary(mappings),
            "parts": [_told(each) for each in mappings],
            "slowest_part_s": max(each.total for each in mappings),
            **({"compiler": [_said(log) for log in logs[name]]} if name in logs else {}),
        }
        for name, mappings in parts.items()
    }
    about = {"basis": "modelled", "sram_bytes": SRAM_BYTES, "segments": found}
    return json.dumps(about, indent=1).encode() + b"\n"


def summary(mappings: Sequence[Mapping]) -> str:
    """One line for people."""
    mapped, operators = sum(each.mapped for each in mappings), sum(each.operators for each in mappings)
    held = sum(each.parameter_bytes - each.streamed_bytes for each in mappings)
    streamed = sum(each.streamed_bytes for each in mappings)
    chips = f" on {len(mappings)} chips, the slowest" if len(mappings) > 1 else ""
    return (
        f"{mapped} of {operators} operators mapped, {held / 1e6:.2f} MB of weights stay in memory, "
        f"{streamed / 1e6:.2f} MB are streamed in each run;{chips} {max(each.total for each in mappings) * 1e3:.2f} ms"
    )


def _told(mapping: Mapping) -> dict[str, Any]:
    stopped = mapping.stopped
    why = None
    if stopped is not None:
        refusal = stopped.refusal
        why = {
            "operator": stopped.at,
            "code": stopped.code,
            "reason": refusal.reason,
            "source": refusal.source,
            "confidence": refusal.confidence,
        }
    return {
        "operators": mapping.operators,
        "mapped": mapping.mapped,
        "stopped_by": why,
        "cautions": mapping.cautions,
        "parameter_bytes": mapping.parameter_bytes,
        "streamed_bytes": mapping.streamed_bytes,
        "input_bytes": mapping.input_bytes,
        "output_bytes": mapping.output_bytes,
        "seconds": {name: round(each, 9) for name, each in mapping.seconds.items()},
    }


def _said(log: Log) -> dict[str, Any]:
    return {"version": log.version, "mapped": log.mapped, "left": log.left, **log.sizes, **log.counts}
