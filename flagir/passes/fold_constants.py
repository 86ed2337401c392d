"""Evaluate what depends on constants alone, so that no tier computes it again at every request."""

import logging
import warnings

import onnx_ir as ir
from onnxscript import optimizer

_MAX_FOLDED_BYTES = 32 << 20


class FoldConstants(ir.passes.InPlacePass):
    """Mutates. onnxscript's folder with limits by which large weights stay where they are mapped.

    Inputs and results over 32 MiB are left alone: the engine folds those when it loads the segment.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place."""
        log = logging.getLogger("onnxscript.optimizer")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, for an overflow that the model's own constants contain
                result = optimizer.fold_constants(
                    model, input_size_limit=_MAX_FOLDED_BYTES // 4, output_size_limit=_MAX_FOLDED_BYTES // 4
                )
        finally:
            log.setLevel(level)
        return ir.passes.PassResult(model, bool(result.modified))
