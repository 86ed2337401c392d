"""Targets of which each is wrong in one way, as oracles of the suite: it has to find out which."""

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from flagsplit.errors import BundleError, ConfigError, ModelError
from flagsplit.flagir import Segment
from flagsplit.targets.cloud.ort import OrtTarget
from flagsplit.targets.interface import (
    Array,
    Artifact,
    CompileOptions,
    Executable,
    LoadOptions,
    StoredArtifact,
    SupportVerdict,
    TargetDescription,
    TensorSpec,
)


class Odd(OrtTarget):
    """ONNX Runtime, but for what the subclasses do to models with an Abs."""

    def compile(self, model: ir.Model, segments: Sequence[Segment], options: CompileOptions) -> Artifact:
        if any(node.op_type == "Abs" for node in model.graph):
            self.at_compile()
        made = super().compile(model, segments, options)
        odd = any(node.op_type == "Abs" for node in model.graph)
        return Artifact(made.files, made.entries, {**made.options, "odd": str(odd)})

    def load(self, artifact: StoredArtifact, segment: str, host: LoadOptions) -> Executable:
        loaded = super().load(artifact, segment, host)
        return OddRun(self, loaded) if artifact.options["odd"] == "True" else loaded

    def at_compile(self) -> None:
        """What is odd before anything was made."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        """What is odd about the answer."""
        return came


class OddRun:
    """An executable of an odd target."""

    def __init__(self, target: Odd, loaded: Executable) -> None:
        self._target, self._loaded = target, loaded

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._loaded.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._loaded.outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return self._target.at_run(tensors, self._loaded.run(tensors))

    def close(self) -> None:
        self._loaded.close()


class WithoutNan(OrtTarget):
    """Says that it does not carry NaN."""

    def describe(self) -> TargetDescription:
        return replace(super().describe(), carries_nan=False, choices={"speed": ("high", "low")})


class Wrong(Odd):
    """Answers a thousandth too much."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        return {name: (array.astype(np.float64) * 1.001).astype(array.dtype) for name, array in came.items()}


class OtherType(Odd):
    """Answers in float64."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        return {name: array.astype(np.float64) for name, array in came.items()}


class Silent(Odd):
    """Answers nothing."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        return {}


class Scribbler(Odd):
    """Writes into its input."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        for array in given.values():
            array[...] = 0
        return came


class Raising(Odd):
    """Raises what is no error of ours."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        raise KeyError("the\nkernel")


class Exiting(Odd):
    """Ends the process."""

    def at_compile(self) -> None:
        print("no such kernel\n", flush=True)
        os._exit(3)


class Segfaulting(Odd):
    """Reads where nothing is."""

    def at_compile(self) -> None:
        ctypes.string_at(0)


class Hanging(Odd):
    """Never answers."""

    def at_run(self, given: Mapping[str, Array], came: dict[str, Array]) -> dict[str, Array]:
        time.sleep(3600)
        return came


class Refusing(Odd):
    """Takes no Abs, and says so."""

    def supports(self, node: ir.Node) -> SupportVerdict:
        if node.op_type == "Abs":
            return SupportVerdict(supported=False, reason="no absolutes")
        return super().supports(node)


class Disagreeing(Odd):
    """Takes an Abs, but does not compile it."""

    def at_compile(self) -> None:
        raise ModelError("cannot compile node 'a' (Abs)")


class Misspeaking(Odd):
    """Refuses in words that are for something else."""

    def at_compile(self) -> None:
        raise BundleError("cannot compile node 'a' (Abs)")


class Bare(Odd):
    """Lacks its SDK."""

    def at_compile(self) -> None:
        raise ConfigError("the bare target needs baretools, which is not installed; pip install 'flagsplit[bare]'")


class Fussy(Odd):
    """Takes an Add of two computed values only if one of them is a constant."""

    def supports(self, node: ir.Node) -> SupportVerdict:
        constant = any(value is not None and value.is_initializer() for value in node.inputs)
        if node.op_type in ("Add", "Reshape") and not constant:
            return SupportVerdict(supported=False, reason="one of them has to be a constant")
        return super().supports(node)


class NoTarget:
    """Has nothing that a target has but a description."""

    def describe(self) -> None:
        return None
