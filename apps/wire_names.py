"""Names that are short enough to travel: what the graphs of plans call values whose own names are too long.

A tensor's name is at most `MAX_NAME_BYTES` of UTF-8 on the wire. Models come with longer ones, and codecs make names
longer. Short names are used in segments and in a plan's steps; the graph in the bundle keeps the model's own.
"""

import hashlib
from typing import Final

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.transport.messages import MAX_NAME_BYTES

_DIGITS: Final = 12
# All that codecs put behind a name is in its last 64 bytes, and can still be read there.
_TAIL_BYTES: Final = 64
_HEAD_BYTES: Final = MAX_NAME_BYTES - _TAIL_BYTES - _DIGITS - 2


def name_that_travels(name: str) -> str:
    """The name itself, or where it is too long its beginning, 12 digits of its SHA-256 between tildes, and its end."""
    whole = name.encode()
    if len(whole) <= MAX_NAME_BYTES:
        return name
    head, tail = (part.decode(errors="ignore") for part in (whole[:_HEAD_BYTES], whole[-_TAIL_BYTES:]))
    return f"{head}~{hashlib.sha256(whole).hexdigest()[:_DIGITS]}~{tail}"


def has_long_names(model: ir.Model) -> bool:
    """Whether a value that a node makes has a name that is too long."""
    return any(name_that_travels(name) != name for node in model.graph for name in _made(node))


def shorten_names(model: ir.Model) -> None:
    """Rename, in place, each value of the main graph whose name is too long.

    Raises:
        ModelError: the model has a value of the short name already.
    """
    graph = model.graph
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken.update(name for node in graph for name in _made(node))
    for node in graph:
        for value in node.outputs:
            short = name_that_travels(value.name or "")
            if short == (value.name or ""):
                continue
            if short in taken:
                raise ModelError(f"value {short!r} has a name that flagsplit gives to a longer one; rename it")
            taken.add(short)
            value.name = short


def check_ends(model: ir.Model) -> None:
    """Graph inputs and outputs are asked for by name, so their names cannot be shortened.

    Raises:
        ModelError: one of them is too long to be sent between tiers.
    """
    for what, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            size_bytes = len((value.name or "").encode())
            if size_bytes > MAX_NAME_BYTES:
                raise ModelError(
                    f"graph {what} {(value.name or '')[:40]!r}... has a name of {size_bytes} bytes, expected at most "
                    f"{MAX_NAME_BYTES}, for tiers name tensors to each other; rename it in the model"
                )


def _made(node: ir.Node) -> list[str]:
    return [value.name or "" for value in node.outputs]
