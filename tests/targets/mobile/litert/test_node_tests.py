"""The operator tests of the onnx package through compile, load and run: none wrong, none crashed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("node_worker.py")
MOST_CRASHES = 5


def results(share: str) -> dict[str, tuple[str, str]]:
    """How each test ended, and why. After a crash the rest runs in another process."""
    found: dict[str, tuple[str, str]] = {}
    wanted: list[str] = []
    for _ in range(MOST_CRASHES):
        done = subprocess.run(
            [sys.executable, str(WORKER), share],
            input=json.dumps(wanted) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        started = ""
        for line in lines:
            started = line.get("starts", "")
            if "name" in line:
                found[line["name"]] = (line["how"], line["why"])
        names = lines[0]["names"] if lines else []
        if started:
            found[started] = ("crashed", done.stderr[-500:])
        wanted = [name for name in names if name not in found]
        if not wanted:
            assert done.returncode == 0 or started, done.stderr
            return found
    raise AssertionError(f"crashed {MOST_CRASHES} times: {found}")


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least"), [("some", 400), pytest.param("all", 830, marks=pytest.mark.large)])
def test_operator_tests_of_onnx(share: str, least: int) -> None:
    """A few of each operator; all with `make test-large`, as in the score card."""
    found = results(share)
    counts = Counter(how for how, _ in found.values())
    bad = {name: (how, why) for name, (how, why) in found.items() if how not in ("passed", "refused")}
    assert not bad, json.dumps(bad, indent=1)
    assert counts["passed"] >= least, counts
    assert all(why for how, why in found.values() if how == "refused")
