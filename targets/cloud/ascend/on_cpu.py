"""For tests and `flagsplit certify`: parts for Ascend, run by ONNX Runtime on the CPU. It says nothing of an Ascend.

What it shows is that the operators that parts are written in, in their older opset, compute what the graph does:

    flagsplit certify flagsplit.targets.cloud.ascend.on_cpu:AscendOnCpu
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flagsplit.targets.cloud.ascend.executable import RenamedExecutable
from flagsplit.targets.cloud.ascend.target import AscendTarget
from flagsplit.targets.interface import Executable, LoadOptions, TargetDescription
from flagsplit.targets.onnx_engine import open_onnx
from flagsplit.targets.segment_table import ChipCall


class AscendOnCpu(AscendTarget):
    """The target with the CPU in the place of the chip; it is in no catalogue, and no bundle runs by it."""

    def describe(self) -> TargetDescription:
        """As the target's, but that it runs, in the graph's own precision."""
        real = super().describe()
        left = {name: values for name, values in real.choices.items() if name != "precision"}
        return replace(real, name="ascend-on-cpu", runs_here="emulated", choices=left)

    def load_part(self, file: Path, call: ChipCall, options: Mapping[str, str], host: LoadOptions) -> Executable:  # noqa: ARG002
        """Open one part on the CPU."""
        return RenamedExecutable(open_onnx(file, file, "exact", host.threads), call)
