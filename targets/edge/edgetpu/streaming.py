"""What a node's weights cost at each run where the SRAM does not hold all of the graph's.

Which nodes share the chip is not known when one is judged. It is taken as though all of the graph did: of each node's
weights the share streams that the SRAM has no place for, over the host's link.
"""

import onnx_ir as ir

from flagsplit.targets.edge.edgetpu.facts import LINK_BYTES_PER_S, ON_CHIP_BYTES_PER_S, SRAM_BYTES

_MIB = 1 << 20
_MOST_STEPS = 8


def streamed_bytes(node: ir.Node) -> float:
    """Bytes of a node's weights that stream at each run."""
    own = _weight_bytes(node)
    if not own or node.graph is None:
        return 0.0
    whole = sum(_weight_bytes(each) for each in node.graph)
    return own * max(1 - SRAM_BYTES / whole, 0.0)


def as_moved_on_chip(node: ir.Node, streamed: float) -> dict[str, float]:
    """The same as bytes that the chip would move in that time, for the values of which one ends the node's block."""
    moved = streamed * ON_CHIP_BYTES_PER_S / LINK_BYTES_PER_S
    names, value = [], node.outputs[0]
    for _ in range(_MOST_STEPS):
        names.append(value.name or "")
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or readers[0].op_type == "DequantizeLinear":
            break
        value = readers[0].outputs[0]
    return dict.fromkeys(names, moved)


def reason_of(streamed: float) -> str:
    """What is said of it."""
    return f"{streamed / _MIB:.2f} MiB of its weights stream at each run: the SRAM holds {SRAM_BYTES / _MIB:.1f} MiB"


def _weight_bytes(node: ir.Node) -> int:
    """Of weights in int8, which a DequantizeLinear gives."""
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return 0
    found = 0
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        source = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None
        if source is not None and source.const_value is not None:
            found += source.const_value.nbytes
    return found
