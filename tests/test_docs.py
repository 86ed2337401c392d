"""The command lines in README.md and docs/ are real: each parses, and blocks marked `console run` do what they say.

In a block that is to be run every line after `$` is run by a shell in one temporary folder, where `model.onnx` is a
small model. Of a block that shows output too, nothing of it is compared: figures differ from host to host.
"""

import itertools
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.apps import models

from flagsplit.apps import zoo
from flagsplit.apps.cli.main import make_app
from flagsplit.errors import PeerError

ROOT = Path(__file__).parents[1]
MISUSE: Any = typer.BadParameter.__mro__[1]
SHELLS = {"console", "bash", "sh", "shell"}
FETCHED = {"transcribe": ("moonshine-encoder", "moonshine-decoder", "moonshine-tokenizer", "silero-vad")}
"""By command, what it fetches of the zoo by itself."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)``` *$", re.DOTALL | re.MULTILINE)
_NUMBERED_REDIRECTION = re.compile(r"(?<=\s)\d(?=>)")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of commands: where it is, its info string, its commands without prompt and output."""

    where: str
    info: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        return self.info[1:] == ("run",)


def blocks_of(page: Path) -> list[Block]:
    found = []
    text = page.read_text()
    for match in _FENCE.finditer(text):
        info = tuple(match["info"].split())
        if info and info[0] in SHELLS:
            line = text.count("\n", 0, match.start()) + 1
            where = f"{page.relative_to(ROOT) if page.is_relative_to(ROOT) else page.name}:{line}"
            found.append(Block(where, info, _commands(match["body"], prompted=info[0] == "console")))
    return found


def _commands(body: str, *, prompted: bool) -> tuple[str, ...]:
    lines = [line.strip() for line in body.replace("\\\n", " ").splitlines()]
    if prompted:
        return tuple(line[1:].strip() for line in lines if line.startswith("$"))
    return tuple(line for line in lines if line and not line.startswith("#"))


def calls_in(command: str) -> list[list[str]]:
    """The words after `flagsplit` of each call in a line; what a call substitutes counts as one word."""
    calls = []
    while match := _SUBSTITUTION.search(command):
        calls += calls_in(match[1])
        command = command[: match.start()] + "SUBSTITUTED" + command[match.end() :]
    command = _NUMBERED_REDIRECTION.sub("", command)
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if token and set(token) <= set("<>"):
            next(tokens)
        elif token and set(token) <= set(";|&()"):
            program = list(itertools.dropwhile(lambda word: "=" in word, words))
            if program and program[0] == "flagsplit":
                calls.append(program[1:])
            words = []
        else:
            words.append(token)
    return calls


def parse(words: list[str]) -> None:
    """Parse a call with the real command line, without running it; raises what typer raises for misuse."""
    command: Any = typer.main.get_command(make_app())
    if "--help" in words:
        words = words[: words.index("--help")]
    context = command.make_context("flagsplit", list(words))
    while hasattr(command, "commands"):
        words = [*context._protected_args, *context.args]
        if not words:
            raise typer.BadParameter("missing command")
        _, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.make_context(command.name, list(words), parent=context)


PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CALLS = [(block.where, call) for block in BLOCKS for command in block.commands for call in calls_in(command)]


@pytest.mark.parametrize(("where", "call"), CALLS, ids=[f"{where}-{' '.join(call[:2])}" for where, call in CALLS])
def test_calls_parse(where: str, call: list[str]) -> None:
    try:
        parse(call)
    except MISUSE as error:
        pytest.fail(f"{where}: flagsplit {' '.join(call)}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in BLOCKS if block.is_run])
def test_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = [call[2] for command in block.commands for call in calls_in(command) if call[:2] == ["zoo", "pull"]]
    cache = tmp_path / "cache"
    (cache / "zoo").mkdir(parents=True)
    for call in (call for command in block.commands for call in calls_in(command)):
        pulled += FETCHED.get(call[0], ())
    for name in dict.fromkeys(pulled):
        try:
            model = zoo.pull(name)
        except PeerError as error:
            pytest.skip(str(error))
        (cache / "zoo" / model.name).symlink_to(model)
    work = tmp_path / "work"
    work.mkdir()
    models.save(models.small(), work / "model.onnx")
    monkeypatch.setenv("FLAGSPLIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(cache))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for command in block.commands:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=work, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{block.where}: {command}: {done.stderr}"


PAGE = """
```console run
$ flagsplit build $(flagsplit zoo pull light-alexnet) \\
    --tiers phone,edge -o x.flagsplit   # a comment
x.flagsplit: 3 kB
$ FLAGSPLIT_DEBUG=1 flagsplit inspect x.flagsplit | head -1; echo '{"a": 1}' > flagsplit
```

1. A list item:

   ```sh
   # a comment
   flagsplit keys show 2> errors && flagsplit run x --no-such-option
   ```

```python
"$ flagsplit not a shell"
```

```
$ flagsplit neither
```
"""


def test_blocks_are_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    first, second = blocks_of(tmp_path / "page.md")
    assert first.is_run
    assert not second.is_run
    assert first.where == "page.md:2"
    calls = [call for block in (first, second) for command in block.commands for call in calls_in(command)]
    assert calls == [
        ["zoo", "pull", "light-alexnet"],
        ["build", "SUBSTITUTED", "--tiers", "phone,edge", "-o", "x.flagsplit"],
        ["inspect", "x.flagsplit"],
        ["keys", "show"],
        ["run", "x", "--no-such-option"],
    ]
    for call in calls[:-1]:
        parse(call)
    for wrong in (calls[-1], ["bild"], ["zoo", "fetch", "x"], ["build", "m.onnx"], []):
        with pytest.raises(MISUSE):
            parse(wrong)


def test_the_pages_have_calls() -> None:
    """Guards the guard: a change of style must not leave nothing to check."""
    assert len(PAGES) > 3
    assert CALLS
