"""A small package made on the spot, so that the tests need no network."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flagsplit.apps.zoo import Entry

ONE, TWO = b"weights " * 1000, b"{}\n"


def entry(name: str, data: bytes, member: str) -> Entry:
    digest = hashlib.sha256(data).hexdigest()
    return Entry(
        name=name,
        title="a test",
        kind="model",
        package="zoo-test-models",
        version="1.0",
        platform=None,
        member=member,
        sha256=digest,
        size_bytes=len(data),
        license="MIT",
        source="made by the test",
    )


def folder_entry(name: str, files: dict[str, bytes], member: str) -> Entry:
    """An entry for a folder of these files, by their paths in it."""
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items()))
    listed = entry(name, lines.encode(), member)
    return replace(listed, size_bytes=sum(map(len, files.values())))


def make_wheel(folder: Path, members: dict[str, bytes], tag: str) -> Path:
    info = "zoo_test_models-1.0.dist-info"
    files = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: zoo-test-models\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    path = folder / f"zoo_test_models-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, data)
    return path


@dataclass(frozen=True)
class Shelf:
    """A folder with one wheel, as pip's --find-links takes it, and the entries for its members."""

    folder: Path
    wheel: Path
    one: Entry
    two: Entry
    one_bytes: bytes = ONE
    two_bytes: bytes = TWO

    @property
    def catalogue(self) -> tuple[Entry, ...]:
        return self.one, self.two

    def add_wheel(self, members: dict[str, bytes], tag: str = "py3-none-any") -> Path:
        return make_wheel(self.folder, members, tag)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = make_wheel(folder, {"models/one.onnx": ONE, "models/two.json": TWO}, "py3-none-any")
    return Shelf(folder, wheel, entry("one", ONE, "models/one.onnx"), entry("two", TWO, "models/two.json"))
