"""Saves programs and runs the saved packages, as a user of the target does."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.targets.interface import Array
from flagsplit.targets.mobile.coreml.lowering.program import build_program
from flagsplit.targets.mobile.mil import load_package


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
