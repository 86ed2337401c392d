"""The target: chip parts become functions of one package, and are loaded by Core ML or emulated.

What a node becomes is in `lowering`, the precision in `precision`, which functions a segment has in `functions`, how
the package is written in `package`. It is `segments.mlpackage`; which function is which segment, and what it takes, is
in `segments.json`.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.interface import (
    SHAPES_CHOICE,
    CompileOptions,
    Executable,
    LoadOptions,
    SupportVerdict,
    TargetDescription,
)
from flagsplit.targets.mobile.coreml.ane_rules import rule_of, verdict
from flagsplit.targets.mobile.coreml.choices import CHOICES, FREE_CHOICES, read_choices
from flagsplit.targets.mobile.coreml.executable import HAS_CORE_ML, load_function
from flagsplit.targets.mobile.coreml.functions import Functions
from flagsplit.targets.mobile.coreml.lowering.registry import refusal
from flagsplit.targets.mobile.coreml.package import PackageWriter
from flagsplit.targets.mobile.coreml.sdk import EXTRA, import_sdk
from flagsplit.targets.mobile.coreml.states import states_of
from flagsplit.targets.segment_table import ChipCall


class CoremlTarget(ChipTarget):
    """Core ML programs for iOS 18, macOS 15 and newer. Needs coremltools to compile and to emulate."""

    def describe(self) -> TargetDescription:
        """Its capabilities; the package is emulated where this is not macOS."""
        try:
            release = version("coremltools")
        except PackageNotFoundError:
            release = "not installed"
        return TargetDescription(
            name="coreml",
            version=release,
            dtypes=("bool", "float16", "float32", "int32", "int64"),
            max_rank=5,
            static_shapes=True,
            runs_here="yes" if HAS_CORE_ML else "emulated",
            source="coremltools' specification of ML programs; rules of the Neural Engine from several sources",
            confidence="medium",
            extra=EXTRA,
            choices=CHOICES,
            free_choices=FREE_CHOICES,
            beside={(SHAPES_CHOICE, "ranged"): rule_of("flexible").on_cpu("its shapes are ranged")},
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether Core ML takes a node of fixed shapes, and what is known of it on the Neural Engine."""
        reason = refusal(node)
        if reason:
            return SupportVerdict(False, reason, source="flagsplit's lowering to ML programs")
        return verdict(node)

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """One package with a function for each part."""
        choices = read_choices(options.choices)
        ct = import_sdk()
        states = states_of(parts, choices.states)
        with tempfile.TemporaryDirectory(prefix="flagsplit-") as folder:
            made = Functions(PackageWriter(Path(folder), int(getattr(ct.target, choices.deployment))), choices)
            for part, held in zip(parts, states, strict=True):
                made.add(part, held)
            files = made.writer.files() if parts else {}
        said = {"in_fp32": made.in_fp32, "by_size": made.by_size}
        told = {name: json.dumps(reasons, sort_keys=True) for name, reasons in said.items() if reasons}
        return ChipArtifact(files, made.calls, {**vars(choices), **told}, made.sized, made.stateful)

    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:
        """Load one function; neither engine takes a number of threads, and the options say nothing that it needs."""
        del options, host
        return load_function(file, call)
