"""From any ONNX model to canonical FlagIR: one opset, inlined, folded, named, typed and shaped.

The order of the passes is the content of this file; what each does is in `flagsplit.flagir.passes`. The result is
still an `onnx_ir.Model` and a valid ONNX model. `flagsplit.flagir.verify` says whether a model is canonical.
"""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from flagsplit.errors import FlagsplitError, InternalError, ModelError
from flagsplit.flagir.passes.canonical_forms import CanonicalForms
from flagsplit.flagir.passes.check_domains import CheckDomains
from flagsplit.flagir.passes.clear_notes import ClearNotes
from flagsplit.flagir.passes.fix_names import FixNames
from flagsplit.flagir.passes.folding import folding
from flagsplit.flagir.passes.infer_shapes import InferShapes
from flagsplit.flagir.passes.inline_functions import InlineFunctions
from flagsplit.flagir.passes.lower_newer import LowerNewer
from flagsplit.flagir.passes.merge_equal import MergeEqual
from flagsplit.flagir.passes.microsoft.rewrite import RewriteMicrosoft
from flagsplit.flagir.passes.microsoft.set_apart import SetApart
from flagsplit.flagir.passes.name_dims import NameDims
from flagsplit.flagir.passes.upgrade_opset import UpgradeOpset
from flagsplit.flagir.version import write_version


def _passes() -> tuple[ir.passes.PassBase, ...]:
    return (
        InlineFunctions(),
        common.RemoveInitializersFromInputsPass(),
        SetApart(),
        CheckDomains(),
        LowerNewer(),
        UpgradeOpset(),
        RewriteMicrosoft(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        NameDims(),
        FixNames(),
        *folding(),
        MergeEqual(),
        ClearNotes(),
        InferShapes(),
        CanonicalForms(),
    )


def canonicalize(model: ir.Model, progress: Callable[[str], None] = lambda _: None) -> None:
    """Bring `model` into canonical form, in place.

    Args:
        model: an imported ONNX model of opset 7 or newer.
        progress: called with the name of each pass before it runs.

    Raises:
        ModelError: the model uses what FlagIR does not have, or contradicts itself.
        InternalError: a pass broke; the message names it and the passes that ran before.
    """
    kept = dict(model.metadata_props)
    ran: list[str] = []
    for step in _passes():
        name = type(step).__name__
        progress(name)
        try:
            step(model)
        except FlagsplitError:
            raise
        except Exception as error:
            cause = error
            while isinstance(cause, ir.passes.InvariantError | ir.passes.PassError) and cause.__cause__ is not None:
                cause = cause.__cause__  # type: ignore[assignment]
            if isinstance(cause, FlagsplitError):
                raise cause from error
            if isinstance(error, ir.passes.PostconditionError):
                story = f"{name} (after {', '.join(ran) or 'no other pass'})"
                raise InternalError(f"pass {story} broke its promise: {error}") from error
            raise ModelError(
                f"cannot bring the model into canonical form, pass {name} failed: {' '.join(str(cause).split())}; "
                f"check the model with onnx.checker"
            ) from error
        ran.append(name)
    model.metadata_props.update(kept)
    write_version(model)
    if model.graph.name is None or not model.graph.name:
        model.graph.name = "model"
