"""The `ascend` target: parts as ONNX files for Huawei's ATC and for ONNX Runtime's CANN provider.

It was never run on an Ascend. What is checked here is that ONNX Runtime computes the same of the files as of the graph
(`on_cpu`); what ATC takes is known from Huawei's pages alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from flagsplit.errors import ModelError
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.chip_target import ChipArtifact, ChipTarget
from flagsplit.targets.cloud.ascend.artifact import CONFIGURATION, SCRIPT, configuration, part_files, provider, script
from flagsplit.targets.cloud.ascend.choices import choices, read_choices
from flagsplit.targets.cloud.ascend.executable import RenamedExecutable
from flagsplit.targets.cloud.ascend.facts import NotTakenError, has_graph
from flagsplit.targets.cloud.ascend.lower import lower
from flagsplit.targets.cloud.ascend.releases import DEFAULT_RELEASE, releases, source_of
from flagsplit.targets.cloud.ascend.rules import DTYPES, MOST_RANK, cpu_reason
from flagsplit.targets.interface import CompileOptions, Executable, LoadOptions, SupportVerdict, TargetDescription
from flagsplit.targets.onnx_engine import open_on_provider
from flagsplit.targets.segment_table import ChipCall
from flagsplit.targets.written_out import model_of

_ADVICE = (
    "segments for ascend run where an Ascend, its CANN toolkit and onnxruntime-cann (with numpy below 2, in place of "
    "onnxruntime; docs/ascend.md) are; they never fall back to the CPU: without these, run the target ort"
)


class AscendTarget(ChipTarget):
    """Huawei's Ascend. Compiling writes files and a script and needs nothing but the base install."""

    def describe(self) -> TargetDescription:
        """Its capabilities, by Huawei's pages of the default release."""
        release = releases()[DEFAULT_RELEASE]
        return TargetDescription(
            name="ascend",
            version=f"CANN {release.version}",
            dtypes=DTYPES,
            max_rank=MOST_RANK,
            static_shapes=True,
            runs_here="yes" if Path("/dev/davinci_manager").exists() else "no",
            source=release.source,
            confidence="low",
            choices=choices(),
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether the list of the default release has it, or what it is written as; restrictions as far as recorded."""
        release = releases()[DEFAULT_RELEASE]
        source = source_of(node.op_type, release)
        reason = _unknown(node)
        if not reason:
            try:
                lowered = lower(model_of(node), release)
            except NotTakenError as error:
                reason = error.reason
        if reason:
            return SupportVerdict(False, reason, source=source, confidence="medium")
        beside = next(filter(None, map(cpu_reason, lowered.graph)), "")
        unit = "cpu" if beside else "accelerator"
        return SupportVerdict(True, beside, unit=unit, source=source, confidence="medium")  # type: ignore[arg-type]

    def in_pieces(self, options: CompileOptions) -> bool:  # noqa: ARG002 whatever is chosen
        """Every file has its own weights, so what segments have in common is compiled once, as pieces."""
        return True

    def compile_parts(self, parts: Sequence[ChipPart], options: CompileOptions) -> ChipArtifact:
        """An ONNX file for each part, `atc.sh` and `ascend.json`; see `ChipTarget.compile_parts`."""
        chosen = read_choices(options)
        files: dict[str, bytes | Path] = {}
        calls: dict[str, ChipCall] = {}
        for part in parts:
            try:
                lowered = lower(part.model, chosen.release)
            except NotTakenError as error:
                raise ModelError(f"segment {part.segment}: {error}") from error
            made, calls[part.segment] = part_files(part.segment, lowered)
            files |= made
        files[SCRIPT], files[CONFIGURATION] = script(calls, chosen), configuration(calls, chosen)
        told = {"soc": chosen.soc, "cann": chosen.release.version, "precision": chosen.precision}
        return ChipArtifact(files, calls, told)

    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:
        """Open one part with ONNX Runtime's CANN provider, all of it or none; see `ChipTarget.load_part`."""
        asked = provider(options.get("precision", "fp16"))
        return RenamedExecutable(open_on_provider(file, None, host.threads, asked, _ADVICE, beside_cpu=False), call)


def _unknown(node: ir.Node) -> str:
    if node.domain:
        return f"{node.domain}.{node.op_type} is not an operator of the standard"
    if has_graph(node):
        return f"{node.op_type} has a graph inside, which is not written in the older opset"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and (value.type is None or value.shape is None):
            return f"the type or shape of {value.name!r} is not known"
    return ""
