"""Bring a model to the pinned opset."""

import logging

import onnx
import onnx_ir as ir
from onnxscript import version_converter

from flagsplit.errors import ModelError
from flagsplit.flagir.opset import IR_VERSION, OLDEST_OPSET, OPSET

_RESIZE_MODES_SINCE = 11
_HARDMAX_AXIS_SINCE = 13
_REWORDED = frozenset(("Attention",))
"""Operators whose definition, not only whose types, was reworked after the pin."""


class UpgradeOpset(ir.passes.InPlacePass):
    """Mutates: operators are rewritten to mean at the pinned opset what they meant at their own.

    A model newer than the pin is relabelled where all its operators are unchanged since the pin, else refused.

    Raises:
        ModelError: the opset is too old, or an operator cannot be converted; the converter's reason is kept.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place."""
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
            _refuse_flattening(model, came)
            _convert(model, came)
            if came < _RESIZE_MODES_SINCE:
                _keep_old_resize(model)
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
        if not node.domain and (reason := _why_not_pinned(node, came))
    }
    if changed:
        raise ModelError(
            f"expected opset {OPSET} or older, came {came}, and these operators differ since {OPSET}: "
            f"{', '.join(sorted(changed)[:8])}; export the model with opset {OPSET}"
        )
    model.opset_imports[""] = OPSET
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.version = None


def _why_not_pinned(node: ir.Node, came: int) -> str:
    """Why a node of a newer opset is not one of the pinned opset; "" if it is."""
    try:
        new = onnx.defs.get_schema(node.op_type, came)
        old = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return f"new since {OPSET}"
    if new.since_version <= OPSET:
        return ""
    odd = set(node.attributes) - set(old.attributes)
    odd |= {name for name in set(new.attributes) - set(old.attributes) if new.attributes[name].required}
    odd |= _foreign_types(node, old)
    if len(node.inputs) > old.max_input or len(node.outputs) > old.max_output:
        odd.add("number of inputs or outputs")
    if node.op_type in _REWORDED:
        odd.add("its definition")
    return f"changed in {new.since_version}: {', '.join(sorted(odd))}" if odd else ""


_TO_DTYPE = ("to", "dtype", "output_dtype")


def _foreign_types(node: ir.Node, schema: onnx.defs.OpSchema) -> set[str]:
    """Element types that a node uses and the schema does not admit; types that are not known yet are trusted."""
    found: set[str] = set()
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if value is not None and value.dtype is not None and formal is not None:
                found.update({_type_text(value.dtype)} - set(formal.types))
    every = {text for formal in schema.outputs for text in formal.types}
    for name in _TO_DTYPE:
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int():
            found.update({_type_text(ir.DataType(attribute.as_int()))} - every)
    return found


def _type_text(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"


def _refuse_flattening(model: ir.Model, came: int) -> None:
    """Hardmax works along one axis only since opset 13, before on all that follow; the converter does not see it."""
    if came < _HARDMAX_AXIS_SINCE and any(
        node.op_type == "Hardmax" and not node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)
    ):
        raise ModelError(
            f"cannot convert Hardmax from opset {came} to {OPSET}: its meaning changed in opset {_HARDMAX_AXIS_SINCE}; "
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
