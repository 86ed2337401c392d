"""PyTorch: exported programs, `.pt2` files and modules with example inputs (extra `flagsplit[torch]`).

PyTorch's own exporter writes the graph at the pinned opset; dynamic shapes stay dynamic. torch is imported inside the
functions that need it.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from flagsplit.errors import ConfigError, ModelError
from flagsplit.flagir.opset import OPSET

if TYPE_CHECKING:
    import torch


def from_module(
    module: "torch.nn.Module",
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ir.Model:
    """Import a module by tracing it on example inputs.

    Args:
        module: is put into evaluation mode for the export and back afterwards.
        args: example positional inputs, tensors of the shapes that matter.
        kwargs: example keyword inputs.
        dynamic_shapes: as for `torch.export.export`, such as `{"x": {0: torch.export.Dim.DYNAMIC}}`.

    Raises:
        ConfigError: torch is not installed.
        ModelError: the module cannot be exported; the message carries PyTorch's reason.
    """
    torch = _torch()
    training = module.training
    module.eval()
    try:
        with _quiet():
            program = torch.export.export(module, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise ModelError(f"torch.export cannot trace {type(module).__name__}: {_short(error)}") from error
    finally:
        module.train(training)
    return from_program(program)


def from_program(program: "torch.export.ExportedProgram") -> ir.Model:
    """Import an exported program.

    Raises:
        ConfigError: torch is not installed.
        ModelError: it uses an operator that has no ONNX form; the message carries PyTorch's reason.
    """
    torch = _torch()
    try:
        with _quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:
        raise ModelError(f"PyTorch cannot write this program as ONNX: {_short(error)}") from error
    if exported is None:
        raise ModelError("PyTorch wrote no ONNX graph for this program; export it with torch.onnx.export and look why")
    model: ir.Model = exported.model
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
    return model


def read_pt2(path: Path, *, trusted: bool) -> ir.Model:
    """Import a `.pt2` file.

    Args:
        path: what `torch.export.save` wrote.
        trusted: whether you know who wrote it. Reading such a file evaluates expressions in it, so a stranger's file
            can run a stranger's code; objects that only pickle could restore are refused in any case.

    Raises:
        ConfigError: torch is not installed, or `trusted` is false.
        ModelError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ModelError(f"no such model file: {path}")
    if not trusted:
        raise ConfigError(
            f"{path} is a PyTorch program, and reading one can run code that is in it; if you know who wrote it, "
            f"say so with --trusted, else ask for an ONNX file"
        )
    torch = _torch()
    try:
        with _quiet(), _no_pickled_objects():
            program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"expected a program that torch.export.save wrote, {path} is not one: {_short(error)}"
        ) from error
    return from_program(program)


def _torch() -> Any:
    try:
        import torch
        import torch.export
        import torch.onnx
    except ImportError:
        raise ConfigError("PyTorch models need PyTorch: pip install 'flagsplit[torch]'") from None
    return torch


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of its own internals and of packages that are not there."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _no_pickled_objects() -> Iterator[None]:
    """Tensors may come out of PyTorch's restricted unpickler; whole objects may not."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
