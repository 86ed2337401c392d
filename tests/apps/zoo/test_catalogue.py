from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from flagsplit.apps import zoo
from flagsplit.apps.zoo.catalogue import KINDS, LICENSES, find, parse
from flagsplit.errors import ConfigError, InternalError

DOCUMENT = Path(__file__).parents[3] / "docs" / "zoo.md"
PROMISED = {
    *("ppocr-det", "ppocr-rec", "ppocr-cls", "page.png", "text.png", "silero-vad", "minilm", "minilm-tokenizer"),
    *("light-alexnet", "light-densenet121", "light-inception-v1", "light-inception-v2", "light-resnet50"),
    *("light-shufflenet", "light-squeezenet", "light-vgg19", "light-zfnet512"),
    *("moonshine-encoder", "moonshine-decoder", "moonshine-tokenizer", "beckett.wav", "two-cities.wav"),
    *("basic-pitch", "basic-pitch.mlpackage"),
    *("whisper-base.part1", "whisper-base.part2", "whisper-base-config", "whisper-base-tokenizer", "smollm2"),
}


def test_the_catalogue_holds_what_was_promised() -> None:
    assert {entry.name for entry in zoo.entries()} == PROMISED
    assert {entry.kind for entry in zoo.entries()} == set(KINDS)
    assert {entry.license for entry in zoo.entries()} <= set(LICENSES)


def test_files_keep_the_suffix_that_tools_go_by() -> None:
    names = {entry.name: entry.file_name for entry in zoo.entries()}
    assert names["ppocr-rec"] == "ppocr-rec.onnx"
    assert names["page.png"] == "page.png"
    assert names["minilm"] == "minilm.safetensors"
    assert names["basic-pitch.mlpackage"] == "basic-pitch.mlpackage"
    assert all(PurePosixPath(name).name == name for name in names.values())


def test_rows_of_one_package_agree_on_the_wheel() -> None:
    wheels = {(entry.package, entry.version, entry.platform) for entry in zoo.entries()}
    assert len(wheels) == len({package for package, _, _ in wheels})


def size(entry: zoo.Entry) -> str:
    return f"{entry.size_bytes / 1e6:.1f} MB" if entry.size_bytes >= 1e5 else f"{entry.size_bytes / 1e3:.1f} kB"


def test_the_document_has_the_same_table() -> None:
    expected = [
        f"| `{e.name}` | {e.title} | {e.kind} | {e.requirement} | {size(e)} | {e.license} | {e.source} |"
        for e in zoo.entries()
    ]
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    first = lines.index("| name | what | kind | package | size | license | from |") + 2
    assert lines[first : lines.index("", first)] == expected


def test_the_document_names_the_licenses_allowed() -> None:
    assert all(
        license_id in DOCUMENT.read_text(encoding="utf-8").split("## Adding a row")[1] for license_id in LICENSES
    )


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ppocr-rec'"):
        find("ppocr_rec")
    with pytest.raises(ConfigError, match=r"it has ppocr-det, .*two-cities\.wav"):
        zoo.pull("../../etc/passwd")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"license": "AGPL-3.0-only"}, "license"),
        ({"license": "CC-BY-4.0"}, "license"),
        ({"name": "../up"}, "name"),
        ({"name": "Upper"}, "name"),
        ({"package": "--index-url=x"}, "package name"),
        ({"version": ">=1"}, "version"),
        ({"member": "/etc/passwd.onnx"}, "member"),
        ({"member": "a/../b.onnx"}, "member"),
        ({"member": "a/LICENSE"}, "member"),
        ({"sha256": "ABC"}, "SHA-256"),
        ({"size_bytes": 0}, "size"),
        ({"size_bytes": "12"}, "size"),
        ({"kind": "video"}, "kind"),
        ({"extra": 1}, "fields differ in"),
    ],
    ids=str,
)
def test_a_row_that_breaks_a_rule_is_refused(change: dict[str, Any], reason: str) -> None:
    row = asdict(zoo.entries()[0]) | change
    with pytest.raises(InternalError, match=f"catalogue row .*{reason}"):
        parse([row])


def test_two_rows_cannot_share_a_file() -> None:
    one = zoo.entries()[0]
    clash = replace(one, name="ppocr-det.onnx")
    with pytest.raises(InternalError, match=r"more than one row for ppocr-det\.onnx"):
        parse([asdict(one), asdict(clash)])
