"""What is left of an encoder: whose fault it is when it does not run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from flagsplit.apps.decoder_service.program_source import ProgramSource, Remainders
from flagsplit.errors import InputError
from flagsplit.runtime.generation.testing import tiny_facts
from flagsplit.targets.interface import LoadOptions
from flagsplit.targets.onnx_engine import open_onnx

# It makes as many numbers as it is told.
GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (int64[1] count) => (float[M] hidden) {
  hidden = ConstantOfShape(count)
}"""


@pytest.fixture
def rest(tmp_path: Path) -> Remainders:
    file = tmp_path / "rest.onnx"
    onnx.save_model(onnx.parser.parse_model(GRAPH), file)
    facts = tiny_facts()
    source = ProgramSource(
        *("it", "d" * 64, ("phone", "cloud"), facts, {"cut": ("count",)}, tmp_path),
        encoders={"cut": lambda _host: open_onnx(file, None, "fast", 1)},
    )
    return Remainders(source, LoadOptions(threads=1))


def test_tensors_of_another_kind_are_to_blame(rest: Remainders) -> None:
    with pytest.raises(InputError, match="data type"):
        rest("cut", {"count": np.array([1.0])})


def test_want_of_memory_is_not_the_fault_of_the_tensors(rest: Remainders) -> None:
    """So the stream is tried elsewhere."""
    with pytest.raises(MemoryError, match="allocate"):
        rest("cut", {"count": np.array([1 << 42])})
