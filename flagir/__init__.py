"""FlagIR: the one graph that every tier reads.

A profile of ONNX: any model comes in through `model_file` and `canonical`, `verify` says whether it is well formed,
`blocks` gives its cost view, `placement` writes plans onto it, `segments` cuts it, `store` keeps it on disk. In memory
it is an `onnx_ir.Model`. This package imports no sibling. Names load when first used: the cost view needs no ONNX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagsplit.flagir.blockgraph import GRAPH_INPUT, OP_CLASSES, Block, BlockGraph, BlockValue
    from flagsplit.flagir.blocks import block_graph
    from flagsplit.flagir.canonical import canonicalize
    from flagsplit.flagir.model_file import read_model
    from flagsplit.flagir.placement import plans_on, read_placement, write_placement
    from flagsplit.flagir.segments import Segment, Step, cut_into_steps, extract
    from flagsplit.flagir.static_shapes import Skeleton, dims_of_shapes, nominal_dims
    from flagsplit.flagir.store import MODEL_NAME, WEIGHTS_NAME, load, save, to_bytes, weights_bytes
    from flagsplit.flagir.types import ValueType
    from flagsplit.flagir.verify import Violation, check, violations

_HOME = {
    "blockgraph": (
        "GRAPH_INPUT",
        "OP_CLASSES",
        "Block",
        "BlockGraph",
        "BlockValue",
    ),
    "blocks": ("block_graph",),
    "canonical": ("canonicalize",),
    "model_file": ("read_model",),
    "placement": (
        "plans_on",
        "read_placement",
        "write_placement",
    ),
    "segments": (
        "Segment",
        "Step",
        "cut_into_steps",
        "extract",
    ),
    "static_shapes": (
        "Skeleton",
        "dims_of_shapes",
        "nominal_dims",
    ),
    "store": (
        "MODEL_NAME",
        "WEIGHTS_NAME",
        "load",
        "save",
        "to_bytes",
        "weights_bytes",
    ),
    "types": ("ValueType",),
    "verify": (
        "Violation",
        "check",
        "violations",
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "GRAPH_INPUT",
    "MODEL_NAME",
    "OP_CLASSES",
    "WEIGHTS_NAME",
    "Block",
    "BlockGraph",
    "BlockValue",
    "Segment",
    "Skeleton",
    "Step",
    "ValueType",
    "Violation",
    "block_graph",
    "canonicalize",
    "check",
    "cut_into_steps",
    "dims_of_shapes",
    "extract",
    "load",
    "nominal_dims",
    "plans_on",
    "read_model",
    "read_placement",
    "save",
    "to_bytes",
    "violations",
    "weights_bytes",
    "write_placement",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'flagsplit.flagir' has no attribute {name!r}")
    value = getattr(import_module(f"flagsplit.flagir.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
