"""What makes a graph quicker on a GPU, as rewrites of ONNX: each finds a pattern and puts one node in its place.

A pass leaves a graph that computes the same. What it makes is a standard operator, or one of the target's own domain
that `lowering` knows. Nodes that nothing reads any more are removed at the end.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.targets.cloud.cuda.passes.attention import fuse_attention
from flagsplit.targets.cloud.cuda.passes.conv_activation import fuse_conv_activations
from flagsplit.targets.cloud.cuda.passes.gates import fuse_gates
from flagsplit.targets.cloud.cuda.passes.into_conv import fold_into_conv
from flagsplit.targets.cloud.cuda.passes.layer_norm import fuse_norms
from flagsplit.targets.cloud.cuda.passes.linear import fuse_linear, share_inputs
from flagsplit.targets.cloud.cuda.passes.neutral import drop_neutral

_PASSES = (
    drop_neutral,
    fuse_norms,
    fuse_gates,
    fold_into_conv,
    fuse_conv_activations,
    fuse_attention,
    fuse_linear,
)


def optimize(model: ir.Model) -> None:
    """Run all passes, in place.

    Args:
        model: a canonical model of fixed shapes; its weights are read where they are folded.
    """
    for rewrite in _PASSES:
        rewrite(model.graph)
        common.RemoveUnusedNodesPass()(model)
    share_inputs(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
