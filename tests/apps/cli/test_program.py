import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tests.apps.cli.conftest import Cli
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.flagir.programs import load_program, save_program


def test_a_program_is_shown_and_written(cli: Cli, tmp_path: Path) -> None:
    folder, output = tmp_path / "program", tmp_path / "written" / "there"
    folder.mkdir()
    made = program_of(oracle.llama_like(np.random.default_rng(2)), [1])
    save_program(made, folder)
    facts = made.facts
    data = cli("program", folder, "--output", output, "--json").data
    assert (data["name"], data["kind"], data["layers"]) == (facts.name, facts.kind, facts.layers)
    assert data["folder"] == str(output)
    assert data["graphs"]["step"]["weights_bytes"] > 0
    assert data["kv_bytes_per_token"] == 8 * facts.layers * facts.kv_heads * facts.head_size
    assert load_program(output).facts == facts
    assert "made-up: decoder-only, Apache-2.0; random numbers" in cli("program", folder).out


def test_what_cannot_be_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    done = cli("program", "zoo:nothing", "-o", tmp_path / "full")
    assert done.code == 2
    assert "to be a new or empty folder, it is there" in done.error
    assert cli("program", "zoo:nothing").error.startswith("the zoo has no program 'nothing'")
    assert "no such model file" in cli("program", _incomplete(tmp_path)).error


@contextmanager
def _small_files() -> Iterator[None]:
    """What a disk does that is full: writing beyond a few bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_what_is_written(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    save_program(program_of(oracle.llama_like(np.random.default_rng(2)), [1]), folder)
    with _small_files():
        done = cli("program", folder, "-o", tmp_path / "new")
        built = cli("build", folder, "--tiers", "phone,cloud", "-o", tmp_path / "x.flagsplit")
    assert (done.code, done.error) == (
        2,
        f"cannot write {tmp_path / 'new'}: File too large; choose another place with -o",
    )
    assert list((tmp_path / "new").iterdir()) == []
    assert (built.code, built.error) == (
        2,
        f"cannot write {tmp_path / 'x.flagsplit'}: File too large; choose another place with -o",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "program"]


def _incomplete(folder: Path) -> Path:
    path = folder / "incomplete"
    path.mkdir()
    save_program(program_of(oracle.llama_like(np.random.default_rng(2)), [1]), path)
    (path / "step.onnx").unlink()
    return path
