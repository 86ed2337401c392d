"""Bring a model to the pinned opset."""

import logging

import onnx
import onnx_ir as ir
from onnxscript import version_converter

from flagsplit.errors import ModelError
from flagsplit.flagir.newer import why_not_pinned
from flagsplit.flagir.opset import IR_VERSION, OLDEST_OPSET, OPSET
from flagsplit.flagir.passes.drop_unused import keep_blanks

_RESIZE_MODES_SINCE = 11
_MEANING_SINCE = {"Hardmax": 13, "Scan": 9}
"""Hardmax worked on all axes that follow the given one, Scan on batches."""


class UpgradeOpset(ir.passes.InPlacePass):
    """Mutates: operators are rewritten to mean at the pinned opset what they meant at their own.

    A model newer than the pin is relabelled where all its operators are unchanged since the pin, else refused.

    Raises:
        ModelError: the opset is too old, or an operator cannot be converted; the converter's reason is kept.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place."""
        if all(node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)):
            model.opset_imports.setdefault("", OPSET)
        came = model.opset_imports.get("")
        if came is None:
            raise ModelError("expected the model to import the standard ONNX opset, found none; the file is damaged")
        if came < OLDEST_OPSET:
            raise ModelError(
                f"expected opset {OLDEST_OPSET} or newer, came {came}; export the model again with a current exporter"
            )
        if came > onnx.defs.onnx_opset_version():
            raise ModelError(
                f"expected opset {onnx.defs.onnx_opset_version()} or older, the newest that the installed onnx package "
                f"knows, came {came}; export the model with opset {OPSET}"
            )
        if came > OPSET:
            _relabel(model, came)
        elif came < OPSET:
            _refuse_old_meanings(model, came)
            _convert(model, came)
            if came < _RESIZE_MODES_SINCE:
                _keep_old_resize(model)
            keep_blanks(model)
        model.ir_version = IR_VERSION
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """The pinned opset is imported."""
        if model.opset_imports.get("") != OPSET:
            raise ir.passes.PostconditionError(f"opset is {model.opset_imports.get('')}, not {OPSET}")


def _relabel(model: ir.Model, came: int) -> None:
    """Later opsets mostly admit more types: a node that the pinned operator takes too means the same there."""
    changed = {
        f"{node.op_type} ({reason})"
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if not node.domain and (reason := why_not_pinned(node, came))
    }
    if changed:
        raise ModelError(
            f"expected opset {OPSET} or older, came {came}, and these operators differ since {OPSET}: "
            f"{', '.join(sorted(changed)[:8])}; export the model with opset {OPSET}"
        )
    model.opset_imports[""] = OPSET
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.version = None


def _refuse_old_meanings(model: ir.Model, came: int) -> None:
    """Operators that the converter passes on although their meaning changed."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        since = _MEANING_SINCE.get(node.op_type, 0) if not node.domain else 0
        if came < since:
            raise ModelError(
                f"cannot convert {node.op_type} from opset {came} to {OPSET}: its meaning changed in opset {since}; "
                f"export the model again with opset 17 or newer"
            )


def _keep_old_resize(model: ir.Model) -> None:
    """Until opset 10 Resize had no modes and sampled at `x / scale`; the converter leaves today's defaults."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Resize" and not node.domain:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


class _Reasons(logging.Handler):
    """Keeps what the converter would only have logged."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.last = " ".join(str(error).split())


def _convert(model: ir.Model, came: int) -> None:
    log = logging.getLogger("onnxscript.version_converter")
    reasons, propagate = _Reasons(), log.propagate
    log.addHandler(reasons)
    log.propagate = False
    try:
        version_converter.convert_version(model, OPSET, fallback=True)
    except Exception as error:  # noqa: BLE001 - the converter raises whatever its adapter for one operator raises
        reasons.last = " ".join(str(error).split())
    finally:
        log.removeHandler(reasons)
        log.propagate = propagate
    if model.opset_imports.get("") != OPSET:
        raise ModelError(
            f"cannot convert the model from opset {came} to {OPSET}: {reasons.last or 'the converter gave no reason'}; "
            f"export it again with opset 17 or newer"
        )
