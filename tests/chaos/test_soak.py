"""The short form of `make soak`: half a minute of faults at random, as a program of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "bench" / "soak.py"


def test_half_a_minute_of_everything_going_wrong() -> None:
    command = [sys.executable, str(PROGRAM), "--json", "--seconds", "30", "--requests", "500", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    figures = found["figures"]
    assert (figures["lost"], figures["doubled"], figures["wrong"]) == (0, 0, 0), found
    assert figures["requests"] >= 500, found
    assert figures["rss_growth"] < 0.10, found
    assert figures["worker_rss_growth"] < 0.10, found
    assert (figures["threads_left"], figures["descriptors_left"]) == (0, 0), found
    assert len(found["conditions"]["faults"]) >= 4, found
