"""What ATC of a release of CANN takes, by Huawei's own lists: the rows of `operators.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import onnx
import onnx_ir as ir

DEFAULT_RELEASE = "8.0"


@dataclass(frozen=True)
class Release:
    """A release of CANN.

    Attributes:
        name: what is chosen.
        version: of the release that the list is of.
        opset: what its models are written in: one that it takes, and that has most of its operators.
        ir_version: of its models.
        operators: those of the list.
        source: of the list.
    """

    name: str
    version: str
    opset: int
    ir_version: int
    operators: frozenset[str]
    source: str

    def has(self, node: ir.Node) -> bool:
        """Whether an operator is in the list and in the opset."""
        known = not node.domain and node.op_type in self.operators
        return known and onnx.defs.has(node.op_type, max_inclusive_version=self.opset)


@cache
def releases() -> Mapping[str, Release]:
    """All, by name; the default first."""
    return {
        name: Release(name, row["version"], row["opset"], row["ir_version"], frozenset(row["operators"]), row["source"])
        for name, row in table()["releases"].items()
    }


def source_of(operator: str, release: Release) -> str:
    """Where it is known from what is taken of an operator."""
    found = table()["restrictions"].get(operator)
    return f"CANN {release.version}: {found['source'] if found else release.source}"


@cache
def table() -> dict[str, Any]:
    """The file as it is."""
    text = resources.files("flagsplit.targets.cloud.ascend").joinpath("operators.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
