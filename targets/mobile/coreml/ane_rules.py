"""What is known of Apple's Neural Engine, as a table.

Apple publishes little. Each rule says where it is from and how sure it is; none was tried on a device here. A rule with
the effect "cpu" makes a node run beside the accelerator; "slower" ones cost time there, which is priced as bytes that
are moved beside; "package" ones concern the whole package, and are here so that they can be read beside the others.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from flagsplit.targets.interface import SupportVerdict

Confidence = Literal["high", "medium", "low"]
Effect = Literal["cpu", "slower", "package"]

_APPLE = "Core ML Tools documentation"
_REVERSE = "published reverse engineering of the Neural Engine"
_MEGABYTE = 1 << 20
_ON_CHIP = 2 * _MEGABYTE
_ROW = 32
"""Halves in 64 bytes."""
_HALF, _FLOAT = 2, 4
"""Bytes of an element there, and in the graph."""


def _nothing(_: ir.Node) -> str:
    return ""


def _none(_: ir.Node) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class AneRule:
    """One thing that is known.

    Attributes:
        id: a short name.
        says: the rule.
        source: who says so.
        confidence: how sure that is.
        effect: see the module.
        breaks: why a node of fixed shapes falls under it; "" if it does not.
        priced: what plans count for a node that falls under it, in words; "" where that follows from the effect.
        moves: for a node that falls under it, the bytes that are moved beside reading and writing each value once, by
            the value's name. They are a guess of what the rule costs, in the graph's element type as all bytes are.
    """

    id: str
    says: str
    source: str
    confidence: Confidence
    effect: Effect
    breaks: Callable[[ir.Node], str] = _nothing
    priced: str = ""
    moves: Callable[[ir.Node], dict[str, float]] = _none

    @property
    def price(self) -> str:
        """What plans count for it, in words."""
        return self.priced or {"cpu": "the CPU's rate, two hand-overs", "package": "nothing", "slower": ""}[self.effect]

    def on_cpu(self, why: str) -> SupportVerdict:
        """The verdict on a node that runs on the CPU by this rule.

        Args:
            why: it falls under the rule.
        """
        return SupportVerdict(True, f"{why}: {self.says}", "cpu", self.source, self.confidence)


def _activations(node: ir.Node) -> Iterator[tuple[str, tuple[int, ...], ir.DataType]]:
    """Name, sizes and element type of what a node reads and gives, constants left out."""
    for value in (*node.inputs, *node.outputs):
        if value is None or value.const_value is not None or value.shape is None or value.dtype is None:
            continue
        if all(isinstance(dim, int) for dim in value.shape):
            yield value.name or "", tuple(int(dim) for dim in value.shape.numpy()), value.dtype


def _sizes(node: ir.Node, at: int) -> tuple[int, ...]:
    value = node.inputs[at] if at < len(node.inputs) else None
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return ()
    return tuple(int(dim) for dim in value.shape.numpy())


def _rank(node: ir.Node) -> str:
    return next((f"{name!r} is of rank {len(sizes)}" for name, sizes, _ in _activations(node) if len(sizes) > 5), "")


def _look_up(node: ir.Node) -> str:
    if node.op_type != "Gather" or len(node.inputs) < 2:
        return ""
    table, indices = node.inputs[0], node.inputs[1]
    looked_up = table is not None and table.const_value is not None and indices is not None
    return "it looks up rows of a table" if looked_up and indices.const_value is None else ""  # type: ignore[union-attr]


def _not_float(node: ir.Node) -> str:
    kinds = [dtype for _, _, dtype in _activations(node)]
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    if not kinds or any(kind in floats for kind in kinds):
        return ""
    return f"it computes with {kinds[0].name.lower()} only"


def _too_long(node: ir.Node) -> str:
    for name, sizes, _ in _activations(node):
        if max(sizes[-2:], default=0) > 16384:
            return f"{name!r} is {max(sizes[-2:])} long"
        if len(sizes) >= 3 and sizes[-3] > 65536:
            return f"{name!r} has {sizes[-3]} channels"
    return ""


def _wide_kernel(node: ir.Node) -> str:
    width = _sizes(node, 1)[-1:] if node.op_type in ("Conv", "ConvTranspose") else ()
    return f"its kernel is {width[0]} wide" if width and width[0] > 13 else ""


def _long_argmax(node: ir.Node) -> str:
    sizes = _sizes(node, 0)
    if node.op_type not in ("ArgMax", "ArgMin") or not sizes:
        return ""
    axis = node.attributes.get("axis")
    size = sizes[axis.as_int() if axis is not None else 0]
    return f"its axis is {size} long" if size > 2048 else ""


def _large(node: ir.Node) -> str:
    for name, sizes, dtype in _activations(node):
        if dtype == ir.DataType.FLOAT and _elements(sizes) * _HALF > _ON_CHIP:
            return f"{name!r} is of {_elements(sizes) * _HALF / _MEGABYTE:.1f} MB in fp16"
    return ""


def _once_more(node: ir.Node) -> dict[str, float]:
    found = {name: _elements(sizes) for name, sizes, dtype in _activations(node) if dtype == ir.DataType.FLOAT}
    return {name: _FLOAT * count for name, count in found.items() if count * _HALF > _ON_CHIP}


def _odd_last(node: ir.Node) -> str:
    for name, sizes, dtype in _activations(node):
        if dtype == ir.DataType.FLOAT and len(sizes) >= 3 and sizes[-1] % _ROW:
            return f"the last axis of {name!r} is {sizes[-1]} long, and is stored as {_padded(sizes[-1])}"
    return ""


def _padding(node: ir.Node) -> dict[str, float]:
    return {
        name: _FLOAT * _elements(sizes[:-1]) * (_padded(sizes[-1]) - sizes[-1])
        for name, sizes, dtype in _activations(node)
        if dtype == ir.DataType.FLOAT and len(sizes) >= 3 and sizes[-1] % _ROW
    }


def _padded(size: int) -> int:
    return -(-size // _ROW) * _ROW


def _elements(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes)


def _row_by_row(node: ir.Node) -> str:
    sizes = _sizes(node, 0)
    if node.op_type not in ("MatMul", "Gemm") or len(sizes) < 2:
        return ""
    weight = node.inputs[1]
    return "it is a matrix product with a weight" if weight is not None and weight.const_value is not None else ""


def _turned(node: ir.Node) -> dict[str, float]:
    return {name: 2.0 * _FLOAT * _elements(sizes) for name, sizes, _ in _activations(node)}


_NEVER = frozenset("ScatterND ScatterElements Scatter LSTM GRU RNN OneHot ReduceProd And Or Xor Not".split())


def _never(node: ir.Node) -> str:
    return f"{node.op_type} does not run there" if node.op_type in _NEVER else ""


def _deep(node: ir.Node) -> str:
    return "it is a 3-D convolution" if node.op_type in ("Conv", "ConvTranspose") and len(_sizes(node, 0)) == 5 else ""


RULES: tuple[AneRule, ...] = (
    AneRule("rank", "Tensors have at most 5 dimensions.", _APPLE, "high", "cpu", _rank),
    AneRule("enumerated", "An input has at most 128 enumerated shapes.", _APPLE, "high", "package"),
    AneRule(
        "flexible",
        "A model of ranged shapes was seen to run on the CPU only.",
        "coremltools issue 1764",
        "medium",
        "package",
        priced="every node on the CPU under `coreml.shapes=ranged`",
    ),
    AneRule("look-up", "Look-ups in embedding tables run on the CPU.", _APPLE, "medium", "cpu", _look_up),
    AneRule("fp16", "It computes in fp16; integers and booleans go elsewhere.", _REVERSE, "medium", "cpu", _not_float),
    AneRule("io", "Inputs and outputs are fp16, int8, uint8, int16 or uint16.", _REVERSE, "medium", "package"),
    AneRule("size", "Width and height go up to 16384, channels up to 65536.", _REVERSE, "medium", "cpu", _too_long),
    AneRule("kernel", "Kernels of convolutions are at most 13 wide in fp16.", _REVERSE, "low", "cpu", _wide_kernel),
    AneRule("argmax", "ArgMax goes over at most 2048 elements.", _REVERSE, "low", "cpu", _long_argmax),
    AneRule(
        "memory",
        "Operands over 2 MB are tiled from DRAM.",
        _REVERSE,
        "low",
        "slower",
        _large,
        "each of them moved once more",
        _once_more,
    ),
    AneRule(
        "padding",
        "The last axis is padded to 64 bytes.",
        _REVERSE,
        "medium",
        "slower",
        _odd_last,
        "the padding moved too",
        _padding,
    ),
    AneRule(
        "layout",
        "It favors (batch, channels, 1, sequence) with convolutions as projections.",
        "Apple, Deploying Transformers on the Apple Neural Engine",
        "high",
        "slower",
        _row_by_row,
        "operand and result turned: each moved twice more",
        _turned,
    ),
    AneRule(
        "operators",
        "Scatter, recurrent layers, one-hot, products over axes and logical operators do not run there.",
        _REVERSE,
        "medium",
        "cpu",
        _never,
    ),
    AneRule("gather", "Gather runs there from A14 on.", _REVERSE, "low", "package"),
    AneRule("3-d", "Sources conflict on 3-D convolutions.", _REVERSE, "low", "cpu", _deep),
    AneRule(
        "switches",
        "Switches to the CPU and back are limited; custom layers never run there.",
        _REVERSE,
        "low",
        "package",
    ),
)
"""All that is known, the surest of its kind first."""


def rule_of(name: str) -> AneRule:
    """The rule of that id."""
    return next(rule for rule in RULES if rule.id == name)


def off_accelerator(node: ir.Node) -> tuple[AneRule, str] | None:
    """The first rule by which a node runs on the CPU, and why it does; None if the accelerator takes it.

    Args:
        node: of fixed shapes.
    """
    return next(((rule, why) for rule in RULES if rule.effect == "cpu" and (why := rule.breaks(node))), None)


def slow_there(node: ir.Node) -> tuple[tuple[AneRule, str], ...]:
    """The rules by which a node is slow on the accelerator, each with the reason."""
    return tuple((rule, why) for rule in RULES if rule.effect == "slower" and (why := rule.breaks(node)))


def verdict(node: ir.Node) -> SupportVerdict:
    """Where a node that can be lowered runs, by these rules, and what it costs there.

    Args:
        node: of fixed shapes.
    """
    off = off_accelerator(node)
    if off is not None:
        rule, why = off
        return rule.on_cpu(why)
    slow = slow_there(node)
    if not slow:
        return SupportVerdict(True)
    extra: dict[str, float] = {}
    for rule, _ in slow:
        for name, moved in rule.moves(node).items():
            extra[name] = extra.get(name, 0.0) + moved
    return SupportVerdict(
        True,
        "; ".join(f"{why}: {rule.says}" for rule, why in slow),
        source=", ".join(dict.fromkeys(rule.source for rule, _ in slow)),
        confidence=min((rule.confidence for rule, _ in slow), key=("low", "medium", "high").index),
        extra_bytes=extra,
    )
