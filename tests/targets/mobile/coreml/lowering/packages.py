"""Saves programs and runs the saved packages, as a user of the target does."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tests.targets.mobile.coreml.lowering.node_tests import NodeTest, joined, take_out_refused

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.lowering.program import build_program
from flagsplit.targets.mobile.mil import load_package

_BY_HAND = frozenset(("test_averagepool_2d_ceil_last_window_starts_on_pad", "test_gridsample_bicubic"))
"""Their answers are typed in with four decimals."""


def called(name: str) -> str:
    """A value's name as an identifier."""
    return "v_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def save(program: Any, folder: Path) -> Path:
    """Save a program in float32, as it was built: coremltools' own passes take most of the time."""
    import coremltools as ct

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        path = folder / "part.mlpackage"
        model.save(str(path))
    return path


def run(model: ir.Model, inputs: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """Build, save, load and run; the outputs in the types of the program."""
    names = {value.name or "": called(value.name or "") for value in (*model.graph.inputs, *model.graph.outputs)}
    function = load_package(save(build_program(model, names), folder)).function()
    taken = {spec.name: spec for spec in function.inputs}
    fed = {}
    for name, array in inputs.items():
        spec = taken.get(called(name))
        if spec is not None:
            fed[spec.name] = np.asarray(array).astype(spec.dtype).reshape([size or 1 for size in spec.shape])
    with np.errstate(all="ignore"):
        made = function.run(fed)
    return {value.name or "": made[called(value.name or "")] for value in model.graph.outputs}


def outcome(tests: Sequence[NodeTest], folder: Path) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """Which tests passed, what was wrong with others, and why the rest was refused."""
    passed: set[str] = set()
    wrong: dict[str, str] = {}
    refused: dict[str, str] = {}
    for at, (model, group) in enumerate(joined(tests)):
        refused |= take_out_refused(model, group)
        here = folder / str(at)
        here.mkdir()
        kept = [test for test in group if test.name not in refused]
        if not kept:
            continue
        made = run(model, {name: array for test in kept for name, array in test.inputs.items()}, here)
        for test in kept:
            problems = [_wrong(array, made[name], test.name) for name, array in test.outputs.items()]
            if any(problems):
                wrong[test.name] = next(filter(None, problems))
            else:
                passed.add(test.name)
    return passed, wrong, refused


def _wrong(expected: Array, came: Array, name: str) -> str:
    came = came.reshape(expected.shape)
    if expected.dtype.kind != "f":
        return "" if (came.astype(np.int64) == expected.astype(np.int64)).all() else "integers differ"
    relative, scaled = (2e-3, 1e-3) if expected.dtype == np.float16 else (1e-4, 1e-6)
    factor = 10 if name in _BY_HAND else 1
    wide, other = expected.astype(np.float64), came.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        near = np.abs(wide - other) <= factor * (relative * np.abs(wide) + scaled * largest)
    good = near | (wide == other) | (np.isnan(wide) & np.isnan(other))
    return "" if good.all() else f"{int((~good).sum())} of {good.size} differ: {wide[~good][0]} came {other[~good][0]}"
