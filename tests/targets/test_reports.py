"""What a target tells of its segments, out of a bundle that anybody may have written."""

import json
from pathlib import Path

import pytest

from flagsplit.errors import BundleError
from flagsplit.targets.interface import REPORT, StoredArtifact


def stored(folder: Path, name: str = "report.json") -> StoredArtifact:
    return StoredArtifact(folder, {}, {REPORT: name}, folder / "weights.bin")


def test_there_need_be_none(tmp_path: Path) -> None:
    assert StoredArtifact(tmp_path, {}, {}, tmp_path).report() is None


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    told = {"basis": "modelled", "segments": {"a": {"summary": "all of it", "more": [1]}}}
    (tmp_path / "report.json").write_text(json.dumps(told))
    assert stored(tmp_path).report() == told


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"basis": "modelled"}', '{"basis": 1, "segments": {}}'),
        *('{"basis": "modelled", "segments": []}', '{"basis": "modelled", "segments": {"a": {}}}'),
        *('{"basis": "modelled", "segments": {"a": {"summary": 3}}}', '{"basis": "modelled", "segments": {"a": "b"}}'),
        *("[" * 99_999, "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_what_is_no_report_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"the report at 'report.json' cannot be read"):
        stored(tmp_path).report()


def test_one_that_is_not_there_or_too_large_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        stored(tmp_path).report()
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(BundleError, match="17825792 bytes"):
        stored(tmp_path).report()


def test_its_path_does_not_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="outside the bundle"):
        stored(tmp_path, "../report.json").report()
