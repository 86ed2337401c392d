"""The program that measures the transport runs and says all its figures; what they are is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
FIGURES = {"throughput_4mb", "throughput_64mb", "latency_4kb", "latency_4kb_vs_grpc", "curve_4mb"}


@pytest.mark.slow
def test_the_quick_form_has_all_figures() -> None:
    program = [sys.executable, str(BENCH / "transport.py"), "--json", "--quick"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["basis"] == "measured"
    assert set(found["figures"]) >= FIGURES
    assert all(figure > 0 for figure in found["figures"].values())
    assert set(found["table"]) == {"raw", "tcp", "curve", "ipc", "memory", "bare", "bare-curve", "grpc", "shared"}
