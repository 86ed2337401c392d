"""Runs operator tests of the onnx package through the litert target, in a process of its own that may crash.

Takes the share of the tests ("all" or "some") as its argument, names on standard input, and writes a line of JSON when
a test starts and when it ends. Inputs that say sizes, axes and the like are bound as constants where the target refuses
them as inputs: models have them so.
"""

import json
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.errors import ModelError
from flagsplit.flagir.specialize import settle
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact
from flagsplit.targets.interface import CompileOptions, LoadOptions
from flagsplit.targets.mobile.litert.target import LitertTarget

TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64}
TYPES.add(onnx.TensorProto.BOOL)
MOST_BOUND = 8
MOST_OF_ONE = 5


@dataclass(frozen=True)
class Built:
    """A test, compiled; what it is given and should answer."""

    model: ir.Model
    made: ChipArtifact
    given: dict[str, Any]
    wanted: list[Any]


class InconsistentError(Exception):
    """What the target said of nodes is not what it did."""


def cases(share: str = "all") -> dict[str, Any]:
    """The tests of tensors that the target takes, by name.

    Args:
        share: "all" leaves out only most of those that are written out as functions: every eighth is there. "some"
            takes a few of each operator, from the first to the last of its tests.
    """
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, Any] = {}
    for case in load_model_tests(kind="node"):
        if case.model is not None and all(map(_taken, (*case.model.graph.input, *case.model.graph.output))):
            found[case.name] = case
    plain = [name for name in sorted(found) if "_expanded" not in name]
    written_out = [name for name in sorted(found) if "_expanded" in name]
    if share == "all":
        return {name: found[name] for name in (*plain, *written_out[::8])}
    by_operator: dict[str, list[str]] = {}
    for name in plain:
        by_operator.setdefault(found[name].model.graph.node[-1].op_type, []).append(name)
    few = [name for names in by_operator.values() for name in names[:: -(-len(names) // MOST_OF_ONE)]]
    return {name: found[name] for name in (*few, *written_out[::32])}


def _taken(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in TYPES


def build(case: Any) -> Built:
    """Compile a test.

    Raises:
        ModelError: it is refused.
        InconsistentError: its nodes are said to be supported, and it is refused, or the other way round.
    """
    names = [value.name for value in case.model.graph.input]
    given, wanted = ([_array(each) for each in arrays] for arrays in case.data_sets[0])
    feeds = {name: array for name, array in zip(names, given, strict=False) if array is not None}
    bound = [name for name in names[1:] if name in feeds and feeds[name].ndim <= 1 and feeds[name].size <= MOST_BOUND]
    try:
        model = _model(case.model, feeds, [])
        return Built(model, _compiled(model), feeds, wanted)
    except ModelError:
        if not bound:
            raise
    model = _model(case.model, feeds, bound)
    return Built(model, _compiled(model), feeds, wanted)


def run(case: Any) -> tuple[str, str]:
    """ "passed", "wrong", "refused" or "inconsistent", and why."""
    try:
        built = build(case)
    except ModelError as refused:
        return "refused", str(refused)
    except InconsistentError as error:
        return "inconsistent", str(error)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "segments.tflite"
        file.write_bytes(built.made.files[file.name])  # type: ignore[arg-type]
        loaded = LitertTarget().load_part(file, built.made.calls["case"], built.made.options, LoadOptions(threads=1))
        came = loaded.run({spec.name: built.given[spec.name] for spec in loaded.inputs})
    for value, wanted in zip(built.model.graph.outputs, built.wanted, strict=True):
        if reason := difference(came[value.name or ""], np.asarray(wanted)):
            return "wrong", reason
    return "passed", ""


def _array(given: Any) -> Any:
    return onnx.numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given


def _model(proto: onnx.ModelProto, feeds: dict[str, Any], bound: list[str]) -> ir.Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in list(copy.graph.input):
        if value.name in bound:
            copy.graph.initializer.append(onnx.numpy_helper.from_array(feeds[value.name], value.name))
            copy.graph.input.remove(value)
        elif value.name in feeds:
            shape = value.type.tensor_type.shape
            shape.Clear()
            for size in feeds[value.name].shape:
                shape.dim.add().dim_value = size
    model = ir.serde.deserialize_model(copy)
    flagir.canonicalize(model)
    settle(model)
    for value in [each for each in model.graph.inputs if not each.uses()]:
        model.graph.inputs.remove(value)
    return model


def _compiled(model: ir.Model) -> ChipArtifact:
    target = LitertTarget()
    verdicts = [target.supports(node) for node in model.graph]
    reasons = [verdict.reason for verdict in verdicts if not verdict.supported]
    try:
        made = target.compile_parts([ChipPart("case", model)], CompileOptions())
    except ModelError as refused:
        if not reasons or reasons[0] not in str(refused):
            raise InconsistentError(f"{refused}, but asked node by node: {reasons}") from None
        raise
    if reasons:
        raise InconsistentError(f"compiled, but asked node by node: {reasons}")
    return made


def difference(came: Any, wanted: Any) -> str:
    """How two arrays differ; "" if they do not."""
    if (came.dtype, came.shape) != (wanted.dtype, wanted.shape):
        return f"expected {wanted.dtype}{wanted.shape}, came {came.dtype}{came.shape}"
    if wanted.dtype.kind != "f":
        return "" if np.array_equal(came, wanted) else "other numbers"
    relative, absolute = (1e-2, 1e-3) if wanted.dtype == np.float16 else (1e-3, 1e-5)
    near = np.allclose(came, wanted, rtol=relative, atol=absolute, equal_nan=True)
    return "" if near else f"off by {np.nanmax(np.abs(came.astype(float) - wanted.astype(float)))}"


def main() -> None:
    warnings.simplefilter("ignore")
    found = cases(sys.argv[1])
    print(json.dumps({"names": list(found)}), flush=True)
    for name in json.loads(sys.stdin.readline()) or list(found):
        print(json.dumps({"starts": name}), flush=True)
        try:
            how, why = run(found[name])
        except ModelError as error:
            how, why = "refused", str(error)
        except Exception as error:  # noqa: BLE001 - whatever else comes is what the test is after
            how, why = "wrong", f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "how": how, "why": why}), flush=True)


if __name__ == "__main__":
    main()
