"""Programs of coremltools built by hand, written and loaded again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagsplit.targets.mobile.coreml.package import PACKAGE, PackageWriter
from flagsplit.targets.mobile.coreml.passes import forget_names, run_passes
from flagsplit.targets.mobile.coreml.sdk import import_sdk
from flagsplit.targets.mobile.mil import Package, load_package

SPECIFICATION = 9
"""The version of iOS 18."""


def build(
    inputs: Mapping[str, Sequence[int]],
    body: Callable[[Any, Mapping[str, Any]], Any],
    *,
    fp16: bool = False,
) -> Any:
    """A program of one function "main" on fp32 inputs, its passes done.

    Args:
        inputs: sizes by name.
        body: from coremltools' builder and the inputs to the output.
        fp16: whether it is computed in fp16.
    """
    ct = import_sdk()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program

    forget_names()
    program = Program()
    taken = {name: Builder.placeholder(tuple(sizes)) for name, sizes in inputs.items()}
    with Function(taken, opset_version=ct.target.iOS18) as function:
        made = body(Builder, function.inputs)
        function.set_outputs(list(made) if isinstance(made, tuple) else [made])
    program.add_function("main", function)
    run_passes(program, (lambda _: True) if fp16 else None, fp16_io=False)
    return program


def write(folder: Path, programs: Mapping[str, Any]) -> dict[str, bytes]:
    """Write programs as functions of one package under a folder; returns its files."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    writer = PackageWriter(scratch, SPECIFICATION)
    for name, program in programs.items():
        writer.add(name, program)
    files = writer.files()
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return files


def load(folder: Path) -> Package:
    """The package that `write` wrote."""
    return load_package(folder / PACKAGE)
