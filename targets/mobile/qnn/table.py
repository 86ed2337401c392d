"""The support table: what the NPU's compiler took of each operator alone, by element type and rank, and why not.

`support.json` is of the version of onnxruntime-qnn that it names. With another one installed, a table that `probe.py
--keep` made of that version is read from the user's cache, if there is one; else the shipped one, with less confidence.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from flagsplit.targets.interface import SupportVerdict
from flagsplit.targets.mobile.qnn.known_wrong import wrong_reason

DTYPES = ("bool", "float16", "float32", "int32", "int64", "int8", "uint8")
"""Element types that the NPU has. Integers of 64 bits are computed in 32."""

MOST_RANK = 5
OPSET = 23
"""FlagIR's, which the probes are of."""


@dataclass(frozen=True)
class SupportTable:
    """The tables of one version of the compiler.

    Attributes:
        version: of onnxruntime-qnn.
        rows: by system on a chip and operator.
        fits: whether it is of the version that is installed, or none is.
    """

    version: str
    rows: Mapping[str, Mapping[str, Any]]
    fits: bool

    def verdict(self, node: ir.Node, soc: str = "") -> SupportVerdict:
        """Whether the NPU takes a node of fixed shapes.

        Args:
            node: of a canonical graph.
            soc: on which system on a chip; "" asks for all of the table.
        """
        source = f"probed with onnxruntime-qnn {self.version}"
        confidence: Any = "high" if self.fits else "low"
        for name in [soc] if soc else self.rows:
            reason = _reason(node, self.rows[name])
            if reason:
                return SupportVerdict(False, reason, source=f"{source} for {name}", confidence=confidence)
        return SupportVerdict(True, source=source, confidence=confidence)


@cache
def support_table(installed: str | None) -> SupportTable:
    """The table for a version.

    Args:
        installed: the version of onnxruntime-qnn here; None if it is not installed.
    """
    shipped = _read(resources.files("flagsplit.targets.mobile.qnn").joinpath("support.json").read_text("utf-8"))
    kept = kept_file(installed) if installed not in (None, shipped["version"]) else None
    if kept is not None and kept.is_file():
        return _table(_read(kept.read_text("utf-8")), installed)
    return _table(shipped, installed)


def kept_file(version: str | None) -> Path:
    """Where a table that was made here is kept: under $FLAGSPLIT_CACHE, else ~/.cache/flagsplit."""
    named = os.environ.get("FLAGSPLIT_CACHE")
    cache_folder = Path(named).expanduser() if named else Path.home() / ".cache" / "flagsplit"
    return cache_folder / "qnn" / f"support-{version}.json"


def _read(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _table(found: Mapping[str, Any], installed: str | None) -> SupportTable:
    rows = {soc: group["operators"] for group in found["tables"] for soc in group["socs"]}
    return SupportTable(found["version"], rows, installed in (None, found["version"]))


def _reason(node: ir.Node, rows: Mapping[str, Any]) -> str:
    """Why the NPU does not take a node; "" if it does."""
    if node.domain:
        return f"{node.domain}.{node.op_type} is not an operator of the standard"
    if any(isinstance(attribute.value, ir.Graph) for attribute in node.attributes.values()):
        return f"{node.op_type} has a graph inside, which the compiler does not take"
    wrong = wrong_reason(node)
    if wrong:
        return wrong
    row = rows.get(node.op_type)
    if row is None:
        return f"{node.op_type} is not among the operators that were probed"
    return _edges_reason(node) or _types_reason(node, row) or _variant_reason(node, row)


def _edges_reason(node: ir.Node) -> str:
    for value in _values(node):
        dtype, rank = value.dtype, _rank(value)
        if dtype is not None and dtype.numpy().name not in DTYPES:
            return f"{value.name!r} is {dtype.numpy().name}, which the NPU does not have"
        if rank is not None and rank > MOST_RANK:
            return f"{value.name!r} has {rank} dimensions; the NPU takes {MOST_RANK}"
        if value.const_value is None and value.shape is not None and 0 in value.shape.dims:
            return f"{value.name!r} has no elements"
    return ""


def _types_reason(node: ir.Node, row: Mapping[str, Any]) -> str:
    given = [value for value in node.inputs if value is not None]
    if not given:
        return ""
    value = given[1] if node.op_type == "Where" and len(given) > 1 else given[0]
    if value.dtype is None:
        return f"the type of {value.name!r} is not known"
    dtype = value.dtype.numpy().name
    cell = row["types"].get(dtype)
    if cell is None:
        return f"{node.op_type} of {dtype} was not probed"
    rank = max(1, _rank(value) or 0)
    probed = dict.fromkeys(cell["yes"], "")
    probed |= {each: reason for reason, ranks in cell.get("no", {}).items() for each in ranks}
    nearest = min(probed, key=lambda each: (abs(each - rank), -each), default=None)
    if nearest is None:
        return f"{node.op_type} of {dtype} was not probed"
    reason: str = probed[nearest]
    return f"{node.op_type} of {dtype} with {nearest} dimensions: {reason}" if reason else ""


def _variant_reason(node: ir.Node, row: Mapping[str, Any]) -> str:
    for attributes, reason in row.get("variants", ()):
        if reason and all(_attribute(node, name) == value for name, value in attributes.items()):
            return f"{node.op_type} with {', '.join(f'{k}={v}' for k, v in attributes.items())}: {reason}"
    return ""


def _attribute(node: ir.Node, name: str) -> Any:
    """An attribute's value, or what the standard takes for it."""
    found = node.attributes.get(name)
    if found is not None:
        return list(found.value) if isinstance(found.value, tuple | list) else found.value
    default = onnx.defs.get_schema(node.op_type, OPSET).attributes[name].default_value
    value = onnx.helper.get_attribute_value(default) if default.type else None
    return value.decode() if isinstance(value, bytes) else value


def _values(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads and gives; the empty names of optional ones left out."""
    yield from (value for value in (*node.inputs, *node.outputs) if value is not None and value.name)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)
