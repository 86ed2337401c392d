"""The façade lists what there is, and every JSON example of the docs is valid."""

import json
import re
from pathlib import Path

import pytest

import flagsplit.splitter as splitter
from flagsplit.splitter.devices import load_catalogue
from flagsplit.splitter.sla import SLA, parse_sla

DOCS = Path(__file__).parents[2] / "docs"


def _examples(page: str) -> list[str]:
    found = re.findall(r"```json\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found
    return found


def test_facade_is_complete() -> None:
    listed = {name for names in splitter._HOME.values() for name in names}
    assert set(splitter.__all__) == listed
    for name in splitter.__all__:
        assert getattr(splitter, name).__module__.startswith("flagsplit.splitter")
    with pytest.raises(AttributeError, match="no attribute 'Splitter'"):
        splitter.Splitter  # noqa: B018


@pytest.mark.parametrize("text", _examples("sla.md"))
def test_sla_examples(text: str) -> None:
    parse_sla(text)


def test_sla_page_names_every_field() -> None:
    page = (DOCS / "sla.md").read_text()
    for field in SLA.model_fields:
        assert f"`{field}`" in page, field


@pytest.mark.parametrize("text", _examples("devices.md"))
def test_device_examples(text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    path.write_text(text)
    loaded = load_catalogue([path])
    assert set(json.loads(text).get("devices", {})) <= set(loaded.devices)
