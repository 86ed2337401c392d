"""One door for models: files by what they are, and PyTorch objects by what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from flagsplit.errors import ConfigError
from flagsplit.flagir.frontends.torch_program import from_module, from_program, read_pt2
from flagsplit.flagir.model_file import read_model


@dataclass(frozen=True)
class Source:
    """A model that is not read yet.

    Attributes:
        model: path of an `.onnx`, `.ort` or `.pt2` file, an `onnx_ir.Model`, a `torch.export.ExportedProgram`, or a
            `torch.nn.Module`.
        example_inputs: positional inputs to trace a module with.
        dynamic_shapes: of a module, as for `torch.export.export`.
        trusted: whether you know who wrote a `.pt2` file; reading one can run code that is in it.
    """

    model: Any
    example_inputs: Sequence[Any] | None = None
    dynamic_shapes: Any = None
    trusted: bool = False

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return self.model if isinstance(self.model, Path) else None

    @property
    def name(self) -> str:
        """What to call the model."""
        if isinstance(self.model, Path):
            return self.model.stem
        if isinstance(self.model, ir.Model):
            return self.model.graph.name or "model"
        return "program" if _is_program(self.model) else type(self.model).__name__

    def read(self) -> ir.Model:
        """Import the model; `flagsplit.flagir.canonicalize` comes next.

        Raises:
            ModelError: it is damaged, or uses what cannot be imported.
            ConfigError: it is no model, or something that its kind needs is missing.
        """
        if isinstance(self.model, Path):
            is_program = self.model.suffix == ".pt2"
            return read_pt2(self.model, trusted=self.trusted) if is_program else read_model(self.model)
        if isinstance(self.model, ir.Model):
            return self.model
        if _is_program(self.model):
            return from_program(self.model)
        if not callable(getattr(self.model, "named_parameters", None)):
            raise ConfigError(
                f"expected the path of a model, an onnx_ir.Model, a torch.export.ExportedProgram or a torch.nn.Module, "
                f"came {type(self.model).__name__}"
            )
        if self.example_inputs is None:
            raise ConfigError("a torch.nn.Module is imported by tracing it: give example_inputs, a tuple of tensors")
        return from_module(self.model, self.example_inputs, dynamic_shapes=self.dynamic_shapes)


def _is_program(model: Any) -> bool:
    """Known by name: torch is not imported to look at what is none of its objects."""
    return any(base.__module__.startswith("torch.export") for base in type(model).__mro__)
