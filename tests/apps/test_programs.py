"""Programs by name, from folders and from files."""

import errno
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from tests.flagir.programs import oracle
from tests.flagir.programs.made import program_of

from flagsplit.apps import programs, zoo
from flagsplit.apps.programs import PROGRAMS, is_program, open_program, program_folder
from flagsplit.errors import ConfigError, ModelError, PeerError
from flagsplit.flagir.programs import Program, save_program


def _made_up() -> Program:
    return program_of(oracle.llama_like(np.random.default_rng(2)), [1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.mkdir()
    save_program(_made_up(), path)
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


def test_the_folder_of_a_program(folder: Path) -> None:
    assert is_program(folder)
    assert is_program(str(folder))
    assert program_folder(folder) == folder
    assert open_program(str(folder)).facts == _made_up().facts


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
def test_moonshine_of_the_zoo(cache: Path) -> None:
    told: list[str] = []
    assert open_program("zoo:moonshine", cache=cache, progress=told.append).facts.name == "moonshine-tiny-en"
    assert told == ["making the program moonshine"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further program, which takes no time to make."""
    recipe = programs._Recipe(("moonshine-tokenizer",), lambda _: _made_up())
    monkeypatch.setitem(programs._RECIPES, "tiny", recipe)


@pytest.mark.usefixtures("tiny")
def test_a_program_is_made_once_and_kept(cache: Path) -> None:
    told: list[str] = []
    path = program_folder("zoo:tiny", cache=cache, progress=told.append)
    assert program_folder("zoo:tiny", cache=cache, progress=told.append) == path
    (path / "step.onnx").write_bytes(b"damage")
    assert open_program("zoo:tiny", cache=cache, progress=told.append).facts.name == "made-up"
    assert told == ["making the program tiny"] * 2


@pytest.mark.usefixtures("tiny")
def test_those_of_other_versions_go(cache: Path) -> None:
    path = program_folder("zoo:tiny", cache=cache)
    others = {name: path.with_name(name) for name in ("tiny-a", "tiny-b", "tiny-c", ".tiny-that-died", "tinier-d")}
    for hours, other in zip((0.1, 1, 2, 48, 48), others.values(), strict=True):
        other.mkdir()
        os.utime(other, (time.time() - hours * 3600,) * 2)
    shutil.rmtree(path)
    assert program_folder("zoo:tiny", cache=cache) == path
    left = {each.name for each in path.parent.iterdir() if not each.name.startswith("moonshine")}
    assert left == {path.name, "tiny-a", "tiny-b", "tinier-d"}


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").symlink_to(cache / "zoo")
    (tmp_path / "programs").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot keep the program tiny in .*; set FLAGSPLIT_CACHE"):
        open_program("zoo:tiny", cache=tmp_path)


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_was_filled_beforehand_may_be_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image of a container."""
    path = program_folder("zoo:tiny", cache=cache)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for change in ("utime", "mkdir", "rename", "unlink", "replace"):
        monkeypatch.setattr(os, change, refuse)
    assert program_folder("zoo:tiny", cache=cache) == path
    assert open_program("zoo:tiny", cache=cache).facts.name == "made-up"
