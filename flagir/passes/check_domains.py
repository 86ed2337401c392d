"""Refuse operators that are not in the ONNX standard, naming each of them."""

from collections import Counter

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.opset import STANDARD_DOMAINS


class CheckDomains(ir.passes.InPlacePass):
    """Mutates nothing. Requires functions to be inlined.

    Raises:
        ModelError: a node uses a vendor's operator, or a function that the model does not define.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every node, those of subgraphs included."""
        foreign = Counter(
            f"{node.domain}.{node.op_type}"
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.domain not in STANDARD_DOMAINS
        )
        if foreign:
            listed = ", ".join(f"{name} ({count})" for name, count in foreign.most_common(8))
            raise ModelError(
                f"expected only standard ONNX operators, found {listed}"
                f"{' and others' if len(foreign) > 8 else ''}; export the model without vendor optimizations"
            )
        return ir.passes.PassResult(model, modified=False)
