"""The program that measures what changes cost under load: nothing fails; how long requests wait is not tested here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "bench" / "swap.py"


def test_no_request_fails_in_any_way_of_change() -> None:
    command = [sys.executable, str(PROGRAM), "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    assert found["figures"].keys() == {"failed", "picked_wait_ratio", "swap_wait_ratio", "rebuilt_wait_ratio"}
    assert found["figures"]["failed"] == 0, found
    assert all(0 < ratio < float("inf") for name, ratio in found["figures"].items() if name != "failed"), found
    assert {change["way"] for change in found["conditions"]["of_each_change"]} == {"picked", "swap", "rebuilt"}
