"""docs/conformance.md is true: its example is certified as it says, its tables are those of the cards."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagsplit.targets.catalogue import TARGETS
from flagsplit.targets.conformance import ScoreCard
from flagsplit.targets.conformance.naming import target_named
from flagsplit.targets.conformance.tolerance import ELEMENTS, NORMS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "conformance.md").read_text()


def _scorecards() -> Any:
    spec = importlib.util.spec_from_file_location("scorecards", ROOT / "tools" / "scorecards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_cards() -> None:
    """If it fails: `python tools/scorecards.py --tables`."""
    tool = _scorecards()
    cards = tool.read_cards()
    for stem, card in cards.items():
        name = stem.partition("-")[0]
        assert name in TARGETS
        assert card.target == target_named(tool.STANDS_IN.get(name, name)).describe().name
    assert "ort" in cards
    assert tool.with_tables(PAGE, cards) == PAGE
    assert tool.with_tables(PAGE, {}) != PAGE


def test_the_cards_are_whole() -> None:
    for path in (ROOT / "docs" / "scorecards").glob("*.json"):
        card = ScoreCard.read(path.read_text())
        assert card.to_json() == path.read_text()
        assert set(card.sources) == {"node", "corpus"}
        for status in ("passed", "failed", "crashed", "refused", "skipped"):
            assert getattr(card.counts, status) == sum(getattr(each, status) for each in card.sources.values())


def test_the_tolerances_are_those_of_the_table() -> None:
    for name, precision in (("float32", "float32"), ("float16", "float16"), ("integers", "int8")):
        cells = [
            *(f"{t.relative:.0e} + {t.scaled:.0e}" for t in (ELEMENTS[precision, k] for k in ("float32", "float16"))),  # type: ignore[index]
            f"{NORMS[precision]:.0e}",  # type: ignore[index]
        ]
        assert f"| {name} | {' | '.join(cells)} |".replace("e-0", "e-") in PAGE


ALL = """
import sys
import certify_it, pytest
from flagsplit.apps.cli.main import main

assert pytest.main(["-q", "-p", "no:cacheprovider", "test_my_target.py"]) == 0
chosen = [f"--operator={name}" for name in ("Abs", "Relu", "Selu")]
sys.argv = ["flagsplit", "certify", "my_target:MyTarget", *chosen, "-o", "card.json"]
main()
"""


@pytest.mark.slow
def test_the_example_is_certified(tmp_path: Path) -> None:
    """In one process, which makes the node tests once."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in blocks] == ["my_target.py", "certify_it.py", "test_my_target.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", ALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Selu: there is no kernel for Selu" in done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)
    card = ScoreCard.read((tmp_path / "card.json").read_text())
    assert card.target == "mine"
    assert card.counts.passed >= 2
    assert card.operators["Selu"].refused >= 3
