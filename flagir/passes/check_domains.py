"""Refuse operators that are neither in the ONNX standard nor rewritten in it later, naming each of them."""

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.flagir.opset import STANDARD_DOMAINS
from flagsplit.flagir.passes.microsoft import REWRITES

_ONE_PROCESSOR = ("com.microsoft.nchwc.", "com.microsoft.Nhwc", "com.ms.internal.nhwc.")
"""What ONNX Runtime writes at its highest optimization level: weights in the order of a processor's vector units."""


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
            if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in REWRITES
        )
        if foreign:
            listed = ", ".join(f"{name} ({count})" for name, count in foreign.most_common(8))
            raise ModelError(
                f"expected only standard ONNX operators, found {listed}"
                f"{' and others' if len(foreign) > 8 else ''}; {_remedy(foreign)}"
            )
        return ir.passes.PassResult(model, modified=False)


def _remedy(foreign: Iterable[str]) -> str:
    if any(name.startswith(_ONE_PROCESSOR) for name in foreign):
        return "the file was optimized for one kind of processor: save it with ORT_ENABLE_EXTENDED or lower"
    return "export the model without vendor optimizations"
