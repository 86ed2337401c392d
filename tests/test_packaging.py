"""The layout: folders at the top, one import name, a wheel that holds all of it and nothing else."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from flagsplit._version import VERSION

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "flagsplit"
FOLDERS = ("apps", "flagir", "runtime", "splitter", "targets", "transport")
DATA = {".json", ".typed"}
OF_EXTRAS = {"flagsplit.targets.cloud.cuda.rowwise.kernels": "triton"}
"""Modules that are nothing but what a package of an extra compiles, and the package."""


def python(program: str) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def modules() -> list[str]:
    """All modules of the package, from the tree."""
    found = ["flagsplit"]
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(("flagsplit", *parts)).removesuffix(".__init__"))
    there = {name for name, needs in OF_EXTRAS.items() if find_spec(needs)}
    return [name for name in found if not name.endswith("__main__") and (name not in OF_EXTRAS or name in there)]


def test_links() -> None:
    links = {path.name: path for path in PACKAGE.iterdir() if path.is_symlink()}
    assert set(links) == set(FOLDERS)
    for name, link in links.items():
        assert os.fspath(link.readlink()) == f"../../{name}"
        assert link.resolve() == ROOT / name
        assert (ROOT / name / "__init__.py").is_file()


@pytest.mark.slow
def test_everything_is_imported_under_one_name() -> None:
    """With the repository's root on the path, where a bare import would find a second copy."""
    program = (
        f"import importlib, sys; sys.path.insert(0, {os.fspath(ROOT)!r})\n"
        f"for name in {modules()!r}: importlib.import_module(name)\n"
        f"print(sorted(set({FOLDERS!r}) & set(sys.modules)))"
    )
    assert python(program).strip() == "[]"


@pytest.mark.slow
def test_import_is_light() -> None:
    heavy = ["numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "ortools", "zmq", "msgpack", "pydantic", "typer"]
    program = (
        "import sys, time; started = time.perf_counter(); import flagsplit\n"
        "print(time.perf_counter() - started)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    seconds, loaded = python(program).splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.3


@pytest.mark.slow
def test_the_command_is_installed() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="flagsplit")
    assert entry.value == "flagsplit.apps.cli.main:main"
    script = Path(sys.executable).with_name("flagsplit")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: flagsplit")
    assert done.stderr == ""


@pytest.mark.slow
def test_the_version_is_told() -> None:
    script = os.fspath(Path(sys.executable).with_name("flagsplit"))
    for command in ([script, "--version"], [sys.executable, "-m", "flagsplit", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"flagsplit {VERSION}, ONNX Runtime ")
        assert done.stderr == ""


def test_what_is_imported_is_declared() -> None:
    """Every distribution whose top-level package the sources import is a dependency of ours, not of a dependency."""
    imported = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for each in ast.walk(ast.parse(path.read_text())):
                if isinstance(each, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in each.names}
                elif isinstance(each, ast.ImportFrom) and each.module:
                    imported.add(each.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"flagsplit"}
    owners = metadata.packages_distributions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra, more in project["optional-dependencies"].items():
        lines += more if extra != "dev" else ()
    declared = {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in lines}
    for name in foreign:
        assert {owner.lower().replace("_", "-") for owner in owners.get(name, [name])} & declared, name


def copy_of_the_tree(folder: Path) -> Path:
    """What a release is made of, so that building leaves nothing in the checkout."""
    folder.mkdir()
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", *FOLDERS):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=leave_out)
    for name in ("pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def builds_without_network() -> bool:
    return int(metadata.version("setuptools").partition(".")[0]) >= 77


@pytest.mark.slow
def test_wheel_holds_the_tree(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(tree)]
    if builds_without_network():
        command.insert(4, "--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not builds_without_network() and "No matching distribution found" in done.stderr:
        pytest.skip("setuptools 77 is neither installed nor on an index that can be reached")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"flagsplit = flagsplit.apps.cli.main:main" in archive.read(entries)
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    expected = {f"flagsplit/{path.name}" for path in PACKAGE.iterdir() if path.is_file()}
    for folder in FOLDERS:
        files = (path for path in (tree / folder).rglob("*") if path.suffix in {".py", *DATA})
        expected |= {f"flagsplit/{path.relative_to(tree)}" for path in files}
    assert found == expected


def test_every_data_file_is_of_a_known_kind() -> None:
    """A new kind of file beside the sources must be named in pyproject.toml, and in this test."""
    odd = {
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".py", *DATA}
    }
    assert odd == set()
