"""Folding: what is known becomes constants, what nobody reads goes, and names and order are as they should be again."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.flagir.passes.drop_identities import DropIdentities
from flagsplit.flagir.passes.drop_unused import DropUnused
from flagsplit.flagir.passes.expand_fills import ExpandFills
from flagsplit.flagir.passes.fix_names import FixNames
from flagsplit.flagir.passes.fold_constants import FoldConstants
from flagsplit.flagir.passes.own_outputs import OwnOutputs
from flagsplit.flagir.passes.sort_nodes import SortNodes
from flagsplit.flagir.passes.unique_names import UniqueNames


def folding() -> tuple[ir.passes.PassBase, ...]:
    """The passes, in their order."""
    return (
        ExpandFills(),
        FoldConstants(),
        DropIdentities(),
        OwnOutputs(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        DropUnused(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        FixNames(),
        UniqueNames(),
        SortNodes(),
    )
