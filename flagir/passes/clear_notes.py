"""Drop what authors and tools noted on nodes and graphs, but not what FlagIR itself reads there."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.flagir.loops import EXPECTED_TRIPS


class ClearNotes(ir.passes.InPlacePass):
    """Mutates: clears metadata and texts of nodes and graphs; how often a loop is expected to run stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clear."""
        said = {
            node: node.metadata_props[EXPECTED_TRIPS]
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if EXPECTED_TRIPS in node.metadata_props
        }
        result = common.ClearMetadataAndDocStringPass()(model)
        for node, trips in said.items():
            node.metadata_props[EXPECTED_TRIPS] = trips
        return ir.passes.PassResult(model, modified=result.modified)
