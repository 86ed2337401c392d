"""Programs by name, from folders and from files."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.apps import zoo
from flagsplit.apps.programs import PROGRAMS, is_program, open_program, program_folder
from flagsplit.errors import ConfigError, FlagsplitError, ModelError, PeerError
from flagsplit.flagir.programs import Program, load_program, save_program


@pytest.fixture(scope="module")
def made_up() -> Program:
    return program_of(oracle.llama_like(np.random.default_rng(2)), [1])


@pytest.fixture
def folder(made_up: Program, tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.mkdir()
    save_program(made_up, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own, with the zoo's files of the user's."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLAGSPLIT_CACHE", raising=False)
        try:
            (path / "zoo").symlink_to(zoo.pull("moonshine-encoder").parent)
        except PeerError as error:
            pytest.skip(str(error))
    return path


def test_the_folder_of_a_program(folder: Path, made_up: Program) -> None:
    assert is_program(folder)
    assert is_program(str(folder))
    assert program_folder(folder) == folder
    assert open_program(str(folder)).facts == made_up.facts


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("zoo:whisper_base", r"no program 'whisper_base'; did you mean zoo:whisper-base\?"),
        ("zoo:x", "there are moonshine, whisper-base, smollm2"),
        ("nothing", "expected zoo:NAME or the folder of a program, came 'nothing'"),
        ("nothing.gguf", "cannot read the weights nothing.gguf"),
    ],
)
def test_what_is_no_program(source: str, reason: str) -> None:
    assert not is_program(source)
    with pytest.raises((ConfigError, ModelError), match=reason):
        open_program(source)


def test_names_are_known_without_reading_anything() -> None:
    assert all(is_program(f"zoo:{name}") for name in PROGRAMS)
    assert not is_program("moonshine")


@pytest.mark.slow
def test_a_program_is_made_once_and_kept(cache: Path) -> None:
    told: list[str] = []
    path = program_folder("zoo:moonshine", cache=cache, progress=told.append)
    assert told[-1] == "making the program moonshine"
    assert load_program(path).facts.name == "moonshine-tiny-en"
    # Others of the name: one is in use, one has not been for long.
    young, old = (path.with_name(f"moonshine-{name}") for name in ("young", "old"))
    for other, age_s in ((young, 60), (old, 7 * 24 * 3600)):
        shutil.copytree(path, other)
        os.utime(other, (time.time() - age_s,) * 2)
    told.clear()
    assert program_folder("zoo:moonshine", cache=cache, progress=told.append) == path
    assert told == []
    (path / "step.onnx").write_bytes(b"damage")
    assert open_program("zoo:moonshine", cache=cache, progress=told.append).facts.layers == 6
    assert told == ["making the program moonshine"]
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, young.name])


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").symlink_to(cache / "zoo")
    (tmp_path / "programs").write_text("in the way")
    with pytest.raises(FlagsplitError, match=r"cannot keep the program moonshine in .*; set FLAGSPLIT_CACHE"):
        open_program("zoo:moonshine", cache=tmp_path)
