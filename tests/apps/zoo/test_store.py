from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.apps.zoo.conftest import folder_entry

from flagsplit.apps import zoo
from flagsplit.apps.zoo.catalogue import Entry
from flagsplit.apps.zoo.store import Store
from flagsplit.apps.zoo.wheels import matches, pip_download
from flagsplit.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from tests.apps.zoo.conftest import Shelf


class Fetcher:
    """Copies the wheel from the shelf, and counts."""

    def __init__(self, shelf: Shelf, delay_s: float = 0.0) -> None:
        self.shelf = shelf
        self.delay_s = delay_s
        self.calls = 0

    def __call__(self, entry: Entry, folder: Path) -> Path:
        self.calls += 1
        time.sleep(self.delay_s)
        return Path(shutil.copy(self.shelf.wheel, folder))


def no_network(entry: Entry, folder: Path) -> Path:
    raise PeerError(f"no network for {entry.name}")


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts
    }


def test_one_wheel_serves_all_its_entries_and_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    fetch = Fetcher(shelf)
    store = Store(tmp_path / "zoo", shelf.catalogue, fetch=fetch)
    path = store.pull(shelf.one)
    assert path == tmp_path / "zoo" / "one.onnx"
    assert path.read_bytes() == shelf.one_bytes
    assert store.pull(shelf.two).read_bytes() == shelf.two_bytes
    assert fetch.calls == 1
    assert files(tmp_path / "zoo") == {"one.onnx", "two.json"}


@pytest.mark.slow
def test_the_whole_way_through_pip(shelf: Shelf, tmp_path: Path) -> None:
    def fetch(entry: Entry, folder: Path) -> Path:
        return pip_download(entry, folder, options=("--no-index", f"--find-links={shelf.folder}"))

    assert Store(tmp_path / "zoo", shelf.catalogue, fetch=fetch).pull(shelf.two).read_bytes() == shelf.two_bytes
    assert files(tmp_path / "zoo") == {"one.onnx", "two.json"}


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "long"])
def test_a_damaged_file_is_fetched_again(shelf: Shelf, tmp_path: Path, damage: str) -> None:
    whole = shelf.one_bytes
    damaged = {"empty": b"", "short": whole[:-1], "flipped": b"W" + whole[1:], "long": whole + b"x"}
    fetch = Fetcher(shelf)
    store = Store(tmp_path / "zoo", shelf.catalogue, fetch=fetch)
    store.pull(shelf.one).write_bytes(damaged[damage])
    assert store.pull(shelf.one).read_bytes() == whole
    assert fetch.calls == 2


def test_a_wrong_hash_leaves_nothing_and_spares_the_others(shelf: Shelf, tmp_path: Path) -> None:
    wrong = replace(shelf.one, sha256="0" * 64)
    said: list[str] = []
    store = Store(tmp_path / "zoo", (wrong, shelf.two), fetch=Fetcher(shelf), progress=said.append)
    with pytest.raises(ConfigError, match=f"expected {len(shelf.one_bytes)} bytes with SHA-256 0000"):
        store.pull(wrong)
    assert files(tmp_path / "zoo") == set()
    assert store.pull(shelf.two).read_bytes() == shelf.two_bytes
    assert files(tmp_path / "zoo") == {"two.json"}
    assert any(line.startswith("left out one: ") for line in said)


def test_a_wrong_hash_does_not_replace_a_file_that_is_there(shelf: Shelf, tmp_path: Path) -> None:
    Store(tmp_path, shelf.catalogue, fetch=Fetcher(shelf)).pull(shelf.one)
    wrong = replace(shelf.one, sha256="0" * 64)
    with pytest.raises(ConfigError):
        Store(tmp_path, (wrong,), fetch=Fetcher(shelf)).pull(wrong)
    assert (tmp_path / "one.onnx").read_bytes() == shelf.one_bytes


def test_offline_is_one_error_unless_the_cache_has_it(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no network for one"):
        Store(tmp_path / "zoo", shelf.catalogue, fetch=no_network).pull(shelf.one)
    assert files(tmp_path / "zoo") == set()
    Store(tmp_path / "zoo", shelf.catalogue, fetch=Fetcher(shelf)).pull(shelf.one)
    assert Store(tmp_path / "zoo", shelf.catalogue, fetch=no_network).pull(shelf.one).read_bytes() == shelf.one_bytes


def test_what_a_killed_process_left_is_swept(shelf: Shelf, tmp_path: Path) -> None:
    stale = tmp_path / "zoo" / f".fetching-{shelf.one.requirement}"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    Store(tmp_path / "zoo", shelf.catalogue, fetch=Fetcher(shelf)).pull(shelf.one)
    assert files(tmp_path / "zoo") == {"one.onnx", "two.json"}
    assert not stale.exists()


def test_many_threads_fetch_once(shelf: Shelf, tmp_path: Path) -> None:
    fetch = Fetcher(shelf, delay_s=0.05)
    with ThreadPoolExecutor(8) as pool:
        stores = [Store(tmp_path / "zoo", shelf.catalogue, fetch=fetch) for _ in range(8)]
        paths = list(pool.map(lambda store: store.pull(shelf.one), stores))
    assert {path.read_bytes() for path in paths} == {shelf.one_bytes}
    assert fetch.calls == 1


PULL = """
import json, shutil, sys, time
from pathlib import Path
from flagsplit.apps.zoo.catalogue import Entry
from flagsplit.apps.zoo.store import Store
wheel, folder, calls, row = sys.argv[1:]
entry = Entry(**json.loads(row))
def fetch(entry, into):
    with open(calls, "a") as log:
        log.write("x")
    time.sleep(0.2)
    return Path(shutil.copy(wheel, into))
assert Store(Path(folder), (entry,), fetch=fetch).pull(entry).stat().st_size == entry.size_bytes
"""


@pytest.mark.slow
def test_two_processes_fetch_once(shelf: Shelf, tmp_path: Path) -> None:
    row = json.dumps(asdict(shelf.one))
    words = [sys.executable, "-c", PULL, str(shelf.wheel), str(tmp_path / "zoo"), str(tmp_path / "calls"), row]
    both = [subprocess.Popen(words) for _ in range(2)]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"
    assert files(tmp_path / "zoo") == {"one.onnx"}


def test_a_cache_filled_beforehand_may_be_read_only(shelf: Shelf, tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "one.onnx").write_bytes(shelf.one_bytes)
    assert Store(folder, shelf.catalogue, fetch=no_network).pull(shelf.one) == folder / "one.onnx"
    assert list(folder.iterdir()) == [folder / "one.onnx"]


def test_a_cache_that_cannot_be_made_is_a_clear_error(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot keep 'one' in .*set FLAGSPLIT_CACHE"):
        Store(tmp_path / "file" / "zoo", shelf.catalogue, fetch=no_network).pull(shelf.one)


def test_progress_is_told_in_lines(shelf: Shelf, tmp_path: Path) -> None:
    said: list[str] = []
    Store(tmp_path, shelf.catalogue, fetch=Fetcher(shelf), progress=said.append).pull(shelf.one)
    assert said == ["fetching zoo-test-models==1.0", "unpacking one (0.0 MB)", "unpacking two (0.0 MB)"]


def test_an_installed_package_is_used_without_a_network(tmp_path: Path) -> None:
    (entry,) = (entry for entry in zoo.entries() if entry.name == "light-resnet50")
    path = Store(tmp_path, zoo.entries(), fetch=no_network).pull(entry)
    assert matches(path, entry)
    assert files(tmp_path) == {"light-resnet50.onnx"}


def test_an_installed_package_with_other_bytes_is_not_used(tmp_path: Path) -> None:
    (entry,) = (entry for entry in zoo.entries() if entry.name == "light-resnet50")
    with pytest.raises(PeerError):
        Store(tmp_path, (), fetch=no_network).pull(replace(entry, sha256="0" * 64))


def test_the_cache_is_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path / "named"))
    assert zoo.pull("light-vgg19") == tmp_path / "named" / "zoo" / "light-vgg19.onnx"
    assert zoo.pull("light-vgg19", cache=tmp_path / "given") == tmp_path / "given" / "zoo" / "light-vgg19.onnx"
    monkeypatch.setenv("FLAGSPLIT_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert zoo.pull("light-vgg19") == tmp_path / "home" / ".cache" / "flagsplit" / "zoo" / "light-vgg19.onnx"


@pytest.mark.slow
@pytest.mark.skipif("PIP_NO_INDEX" in os.environ, reason="pip is told to use no index")
def test_the_recognizer_comes_over_the_real_network(tmp_path: Path) -> None:
    said: list[str] = []
    try:
        path = zoo.pull("ppocr-rec", cache=tmp_path, progress=said.append)
    except PeerError as error:
        pytest.skip(str(error))
    assert path == tmp_path / "zoo" / "ppocr-rec.onnx"
    assert path.stat().st_size == 10_857_958
    assert said[0] == "fetching rapidocr-onnxruntime==1.4.4"
    assert files(tmp_path / "zoo") == {"ppocr-det.onnx", "ppocr-rec.onnx", "ppocr-cls.onnx"}


FOLDER = {"Manifest.json": b"{}", "Data/model.bin": b"layers " * 500, "Data/weights/weight.bin": b"weights " * 500}


def test_a_folder_comes_as_one(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add_wheel({"models/one.onnx": b"another", **{f"models/net.pack/{path}": FOLDER[path] for path in FOLDER}})
    net = folder_entry("net.pack", FOLDER, "models/net.pack/")
    fetch = Fetcher(shelf)
    store = Store(tmp_path / "zoo", (net,), fetch=fetch)
    path = store.pull(net)
    assert path == tmp_path / "zoo" / "net.pack"
    assert files(path) == set(FOLDER)
    assert all((path / name).read_bytes() == data for name, data in FOLDER.items())
    assert store.pull(net) == path
    assert fetch.calls == 1


@pytest.mark.parametrize("damage", ["flipped", "missing", "more", "renamed"])
def test_a_damaged_folder_is_fetched_again(shelf: Shelf, tmp_path: Path, damage: str) -> None:
    shelf.add_wheel({f"models/net.pack/{path}": data for path, data in FOLDER.items()})
    net = folder_entry("net.pack", FOLDER, "models/net.pack/")
    fetch = Fetcher(shelf)
    store = Store(tmp_path / "zoo", (net,), fetch=fetch)
    inner = store.pull(net) / "Data/model.bin"
    if damage == "flipped":
        inner.write_bytes(b"L" + FOLDER["Data/model.bin"][1:])
    elif damage == "missing":
        inner.unlink()
    elif damage == "more":
        inner.with_name("empty").touch()
    else:
        inner.rename(inner.with_name("other"))
    assert files(store.pull(net)) == set(FOLDER)
    assert inner.read_bytes() == FOLDER["Data/model.bin"]
    assert fetch.calls == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Data/model.bin": b"other"}, "expected 7502 bytes .*; got 4007 bytes"),
        ({"Data/more.bin": b"x"}, "got more than 7502 bytes"),
        ({"../escaped.bin": b""}, "lies outside of it"),
    ],
    ids=["other", "more", "outside"],
)
def test_a_wrong_folder_is_not_kept(shelf: Shelf, tmp_path: Path, change: dict[str, bytes], message: str) -> None:
    shelf.add_wheel({f"models/net.pack/{path}": data for path, data in (FOLDER | change).items()})
    net = folder_entry("net.pack", FOLDER, "models/net.pack/")
    with pytest.raises(ConfigError, match=message):
        Store(tmp_path / "zoo", (net,), fetch=Fetcher(shelf)).pull(net)
    assert files(tmp_path / "zoo") == set()
