"""What a bisection found out about a segment that departs, and what one can do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import onnx_ir as ir

from flagsplit.apps.deviation import Deviation
from flagsplit.targets.interface import Array


class Cause(Enum):
    """What is wrong with a segment that departs."""

    STORED = "stored"
    """The artifact is not what a rebuild gives, which agrees."""

    NODE = "node"
    """A node departs by itself, on the reference's inputs."""

    TOGETHER = "together"
    """Some nodes depart where they are compiled together, such as by fusing them, and not each by itself."""

    GRADUAL = "gradual"
    """No node departs by itself; the error grew until it was too much."""

    UNKNOWN = "unknown"
    """It could not be looked for."""


@dataclass(frozen=True)
class NodeInput:
    """What a node reads: a value's name, NumPy element type and shape, and whether it is a weight."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    weight: bool = False

    @classmethod
    def of(cls, value: ir.Value, array: Array | None) -> "NodeInput":
        """A value of a graph, as it is declared, or as it is if it is known."""
        name = value.name or ""
        if array is not None:
            return cls(name, array.dtype.name, array.shape)
        dtype = value.dtype.numpy().name if value.dtype is not None and value.dtype != ir.DataType.STRING else "?"
        shape = tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape or ())
        return cls(name, dtype, shape, value.is_initializer())

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]{' (weight)' if self.weight else ''}"


@dataclass(frozen=True)
class NodeFacts:
    """A node: its name, its operator, the name of its block, and what it reads."""

    name: str
    op_type: str
    block: str
    inputs: tuple[NodeInput, ...]

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        inputs = [
            {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "weight": each.weight}
            for each in self.inputs
        ]
        return {"name": self.name, "op_type": self.op_type, "block": self.block, "inputs": inputs}


@dataclass(frozen=True)
class Growth:
    """How far things are off with all nodes up to one on the target.

    Attributes:
        node: the last of them.
        output: what it makes there.
        effect: what becomes of the segment's outputs.
    """

    node: NodeFacts
    output: Deviation | None
    effect: Deviation


@dataclass(frozen=True)
class Fault:
    """Why a segment departs.

    Attributes:
        cause: what is wrong.
        nodes: with `NODE` the node; with `TOGETHER` the nodes; with `GRADUAL` the node with which it becomes too much;
            with `STORED` the node whose stored form is another, where that could be found.
        output: how far the output of the last of them is off.
        effect: how far the segment's outputs are off for that.
        growth: with `GRADUAL`, how the error came to be.
        note: what could not be done, and why.
        advice: what to do.
    """

    cause: Cause
    nodes: tuple[NodeFacts, ...] = ()
    output: Deviation | None = None
    effect: Deviation | None = None
    growth: tuple[Growth, ...] = ()
    note: str = ""
    advice: str = ""

    def to_data(self) -> dict[str, Any]:
        """As JSON data."""
        rows = [
            {
                "node": row.node.to_data(),
                "output": row.output and row.output.to_data(),
                "effect": row.effect.to_data(),
            }
            for row in self.growth
        ]
        return {
            "cause": self.cause.value,
            "nodes": [node.to_data() for node in self.nodes],
            "output": self.output and self.output.to_data(),
            "effect": self.effect and self.effect.to_data(),
            "growth": rows,
            "note": self.note,
            "advice": self.advice,
        }


_COARSE = ("fp16", "bf16", "mixed", "int8", "int4", "lut4", "qdq", "qdq8", "qdq16")
"""What can be too coarse for some nodes."""


def advice_for(fault: Fault, tier: str, target: str, chosen: Mapping[str, str], other_tier: str) -> str:
    """What one can do about a fault.

    Args:
        fault: what was found.
        tier: where it is.
        target: of the artifact.
        chosen: what the artifact is built with, `precision` and `weights` as far as they are known.
        other_tier: a tier that could run the nodes instead; "" if there is none.
    """
    if fault.cause is Cause.STORED:
        return "the artifact was changed or made by another version: build the bundle again"
    if not fault.nodes:
        return ""
    ways: list[str] = []
    coarse = {name: value for name, value in chosen.items() if value in _COARSE}
    for name, value in coarse.items():
        ways.append(f"build with another {name} than {value}, --choice {target}.{name}=...")
    name = fault.nodes[-1].name
    if fault.cause is Cause.GRADUAL:
        ways.append(f"if an error of that size does no harm, allow it with --tolerance {target}=NUMBER")
    elif other_tier:
        ways.append(f'keep it off {tier} with the SLA {{"pins": {{"{name}": "{other_tier}"}}}}')
    if not coarse and fault.cause in (Cause.NODE, Cause.TOGETHER):
        ways.append(f"report it: the {target} target lowers it wrongly")
    return "; or ".join(ways)
