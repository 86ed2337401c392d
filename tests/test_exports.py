"""Façades: what `__all__` lists is what is public, can be imported, and says what it is."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import flagsplit

ROOT = Path(__file__).parents[1]
FOLDERS = ("apps", "flagir", "runtime", "splitter", "targets", "transport")


STILL_SILENT = {"flagsplit.transport.Received", "flagsplit.transport.inbound_name"}
"""Public names that are still to get a docstring; none may be added."""


def facades() -> list[str]:
    """Every module that has an `__all__`: only façades do."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return ["flagsplit", *(_module(path) for path in paths if _has_all(path))]


def _module(path: Path) -> str:
    return ".".join(("flagsplit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def _has_all(path: Path) -> bool:
    names = (
        target.id
        for each in ast.parse(path.read_text()).body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    )
    return "__all__" in names


def exported(facade: str) -> Iterator[tuple[str, Any]]:
    module = import_module(facade)
    return ((name, getattr(module, name)) for name in module.__all__)


def test_facades() -> None:
    """Packages, and modules that ship fakes and conformance suites to others."""
    found = facades()
    assert {"flagsplit", "flagsplit.flagir", "flagsplit.splitter", "flagsplit.transport"} <= set(found)
    for name in found:
        assert hasattr(import_module(name), "__path__") or name.endswith(".testing"), name


@pytest.mark.parametrize("facade", [name for name in facades() if not name.endswith(".testing")])
def test_all_is_what_is_public(facade: str) -> None:
    module = import_module(facade)
    assert len(set(module.__all__)) == len(module.__all__)
    listed = {name for name, _ in exported(facade)}
    public = {name for name, value in vars(module).items() if not name.startswith("_") and _is_of(facade, value)}
    assert public <= listed
    namespace: dict[str, object] = {}
    exec(f"from {facade} import *", namespace)
    assert listed <= set(namespace)


def _is_of(facade: str, value: object) -> bool:
    """Whether it is a class or function that this façade defines or, if it is a package, gathers from its modules."""
    home = getattr(value, "__module__", "") if inspect.isclass(value) or inspect.isfunction(value) else ""
    return f"{home}.".startswith(f"{facade}.")


@pytest.mark.parametrize("facade", facades())
def test_public_things_say_what_they_are(facade: str) -> None:
    for name, value in exported(facade):
        if inspect.isclass(value) or inspect.isroutine(value):
            doc = inspect.getdoc(value) or ""
            made_by_dataclass = doc.startswith(f"{name}(")
            assert (doc and not made_by_dataclass) or f"{facade}.{name}" in STILL_SILENT, (
                f"{facade}.{name}: no docstring"
            )


def test_the_package_lists_its_names() -> None:
    assert set(dir(flagsplit)) == set(flagsplit.__all__)
    with pytest.raises(AttributeError, match="module 'flagsplit' has no attribute 'biuld'"):
        flagsplit.biuld  # noqa: B018


def test_type_checkers_see_what_is_loaded_lazily() -> None:
    """The imports under TYPE_CHECKING, which mypy reads, and the homes, which Python reads, are the same."""
    for module in (flagsplit, import_module("flagsplit.splitter"), import_module("flagsplit.runtime.telemetry")):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        guarded = next(each for each in tree.body if isinstance(each, ast.If))
        seen = {
            alias.name: each.module for each in guarded.body if isinstance(each, ast.ImportFrom) for alias in each.names
        }
        assert set(seen) == {name for name in module.__all__ if not name.startswith("__")}
        for name, home in seen.items():
            assert home is not None
            assert getattr(module, name) is getattr(import_module(home), name)
