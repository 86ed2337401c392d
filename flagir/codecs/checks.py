"""Counting what an Encode would hide: beside each one that makes NaN a number, a node that counts them.

`EncodeU8` and `EncodeU4` make 0 of NaN, so their results do not tell. A `flagir.CountNotFinite` on the tier that
encodes gives one number that does. Nobody reads it in the graph; a segment with it has it as an output, and whoever
runs the segment looks at it (`flagsplit.runtime.codec_check`). It never travels, and a reference has none.
"""

import onnx_ir as ir

from flagsplit.flagir.codecs.functions import COUNT, DOMAIN, function
from flagsplit.flagir.codecs.names import CHECK, read_encoded_name

_HIDING = ("EncodeU8", "EncodeU4")


def add_checks(model: ir.Model) -> None:
    """Count, in place, the numbers that are not finite of what is encoded by a codec that hides them.

    Args:
        model: a canonical model with codecs (`apply_codecs`), before `name_what_is_lossy`. Each encoded value gets an
            int64 scalar `VALUE.CODEC.check`, made on the tier that encodes.
    """
    encodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type in _HIDING]
    taken = {value.name for node in model.graph for value in node.outputs}
    for encode in encodes:
        made = read_encoded_name(encode.outputs[0].name or "")
        name = made.with_role(CHECK) if made else ""
        if not name or name in taken:
            continue  # a model with such names of its own goes unchecked rather than wrong
        output = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(()))
        node = ir.node(COUNT, [encode.inputs[0]], domain=DOMAIN, outputs=[output], name=f"{name}.count")
        node.device_configurations = encode.device_configurations
        model.graph.insert_after(encode, node)
    if encodes:
        made_function = function(COUNT)
        model.functions[made_function.identifier()] = made_function
