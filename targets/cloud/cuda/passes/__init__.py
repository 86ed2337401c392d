"""What makes a graph quicker on a GPU, as rewrites of ONNX: each finds a pattern and puts one node in its place.

A pass leaves a graph that computes the same. What it makes is a standard operator, or one of the target's own domain
that `lowering` knows. Nodes that nothing reads any more are removed at the end.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.targets.cloud.cuda.passes.attention import fuse_attention
from flagsplit.targets.cloud.cuda.passes.cached_attention import fuse_cached_attention
from flagsplit.targets.cloud.cuda.passes.conv_activation import fuse_conv_activations
from flagsplit.targets.cloud.cuda.passes.gates import fuse_gates
from flagsplit.targets.cloud.cuda.passes.into_conv import fold_into_conv
from flagsplit.targets.cloud.cuda.passes.layer_norm import fuse_norms
from flagsplit.targets.cloud.cuda.passes.linear import fuse_linear, share_inputs
from flagsplit.targets.cloud.cuda.passes.neutral import drop_neutral
from flagsplit.targets.cloud.cuda.passes.row_ends import fuse_row_ends

_PASSES = (
    drop_neutral,
    fuse_norms,
    fuse_gates,
    fold_into_conv,
    fuse_conv_activations,
    fuse_attention,
    fuse_linear,
)


def optimize(model: ir.Model, *, is_step: bool = False) -> None:
    """Run all passes, in place.

    Args:
        model: a canonical model of fixed shapes; its weights are read where they are folded.
        is_step: whether it is a program's step, which `Style.rows` lowers: what that needs too.
    """
    if is_step:
        fuse_cached_attention(model.graph)
    for rewrite in _PASSES:
        rewrite(model.graph)
        common.RemoveUnusedNodesPass()(model)
    share_inputs(model.graph)
    if is_step:
        fuse_row_ends(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
