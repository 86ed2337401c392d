"""Packages written with coremltools' builder and saved to disk, for the interpreter to read."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.targets.mobile.mil import Function, load_package

Array = NDArray[Any]
Build = Callable[..., Any]
"""Takes a builder and one variable per input, and gives one variable or a tuple of them."""

IOS = {15: "iOS15", 16: "iOS16", 17: "iOS17", 18: "iOS18"}


def save(
    folder: Path,
    build: Build,
    inputs: Mapping[str, Any],
    *,
    ios: int = 15,
    half: bool = False,
    passes: bool = False,
    types: Sequence[Any] | None = None,
    **options: Any,
) -> Path:
    """Write a package.

    Args:
        folder: where to.
        build: makes the program.
        inputs: an array, a shape with open dimensions or a specification of coremltools' for each input.
        ios: version of the operators.
        half: convert the program to fp16.
        passes: let coremltools optimize it.
        types: coremltools' descriptions of the inputs, where they say more than `inputs`.
        options: more of `coremltools.convert`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools as ct
        from coremltools.converters.mil import Builder
        from coremltools.converters.mil.mil import Function as MilFunction
        from coremltools.converters.mil.mil import Program

        target = getattr(ct.target, IOS[ios])
        specs = {name: _spec(Builder, value) for name, value in inputs.items()}
        program = Program()
        with MilFunction(specs, target) as function:
            outputs = build(Builder, *(function.inputs[name] for name in specs))
            function.set_outputs(list(outputs) if isinstance(outputs, list | tuple) else [outputs])
        program.add_function("main", function)
        pipeline = ct.PassPipeline.DEFAULT if passes or half else ct.PassPipeline.EMPTY
        precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=precision,
            pass_pipeline=pipeline,
            skip_model_load=True,
            **({} if types is None else {"inputs": list(types)}),
            **options,
        )
        path = folder / "program.mlpackage"
        model.save(str(path))
    return path


def run(folder: Path, build: Build, inputs: Mapping[str, Array], **options: Any) -> list[Array]:
    """Write a program and run it: its outputs in order."""
    function = load(folder, build, inputs, **options)
    return list(function.run(inputs).values())


def load(folder: Path, build: Build, inputs: Mapping[str, Any], **options: Any) -> Function:
    """Write a program and read it back."""
    return load_package(save(folder, build, inputs, **options)).function()


def _spec(builder: Any, value: Any) -> Any:
    from coremltools.converters.mil.mil import types

    if isinstance(value, np.ndarray):
        return builder.TensorSpec(value.shape, dtype=types.numpy_type_to_builtin_type(value.dtype))
    return value


def weight_bytes(folder: Path) -> int:
    """The size of the weight file of the package that was saved in `folder`."""
    return (folder / "program.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
