"""`flagsplit decode-serve` in a process of its own, as an operator sees it: ready, asked, watched, drained."""

import json
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.chaos.decoders import Decoders
from tests.targets.generation.programs import Small, small_program

from flagsplit.apps.cli.main import main
from flagsplit.apps.decoder_service.gateway_opening import _cuts
from flagsplit.apps.decoder_service.program_source import Remainders, folder_digest, folder_source
from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.generation.client import ClientSettings, StreamClient
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.ort_step import OrtStepModel
from flagsplit.targets.interface import Array, LoadOptions, TensorSpec

pytestmark = pytest.mark.slow

OPTIONS = GenerationOptions(max_tokens=20)
AUDIO = np.sin(np.arange(8000, dtype=np.float32) / 7)[None]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_program(tmp_path_factory.mktemp("program"), "moonshine", 5)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("FLAGSPLIT_HOME", str(tmp_path / "home"))
    return {"FLAGSPLIT_HOME": str(tmp_path / "home")}


@pytest.fixture
def running(program: Small, home: dict[str, str]) -> Iterator[Decoders]:
    with Decoders(program.folder, 1, home, "--http", "127.0.0.1:0", "--slots", "2", "--drain-s", "5") as decoders:
        yield decoders


def wanted(program: Small, context: dict[str, Array], prompt: tuple[int, ...] = ()) -> tuple[int, ...]:
    model = OrtStepModel(program.folder, 1, 1)
    try:
        return tuple(generate(model, context, prompt, OPTIONS))
    finally:
        model.close()


def page(about: dict[str, Any], path: str) -> str:
    with urllib.request.urlopen(about["http"] + path, timeout=5) as answer:
        return str(answer.read().decode())


def test_it_serves_every_cut_is_watched_and_drains(program: Small, running: Decoders) -> None:
    about = running.replicas[0].about
    source = folder_source(program.folder)
    assert about["bundle"] == source.digest == folder_digest(program.folder)
    assert about["plans"] == {"hidden": ["hidden"], "audio": ["audio"]}
    hidden = dict(Remainders(source, LoadOptions(threads=1))("audio", {"audio": AUDIO}))
    with StreamClient(running.addresses, running.digest, settings=ClientSettings(connect_s=20)) as client:
        streams = [
            client.stream({"audio": AUDIO}, OPTIONS, plan="audio"),
            client.stream(hidden, OPTIONS, plan="hidden"),
            *(client.stream(hidden, OPTIONS, plan="hidden", prompt=(1, token)) for token in range(3, 9)),
        ]
        found = [stream.result(30) for stream in streams]
        assert found[0] == found[1] == wanted(program, hidden)
        assert found[2:] == [wanted(program, hidden, (1, token)) for token in range(3, 9)]
        metrics = page(about, "/metrics")
        given = sum(map(len, found))
        assert f"flagsplit_tokens_total {given:.1f}" in metrics
        assert "flagsplit_stream_first_token_seconds_count 8.0" in metrics
        assert "flagsplit_slots 2.0" in metrics
        assert json.loads(page(about, "/readyz"))["ready"]
        stats = json.loads(page(about, "/stats"))
        assert stats["generation"]["tokens"] == given
        assert stats["generation"]["first_ms"]["p50"] > 0
        assert 1 <= stats["generation"]["batch_mean"] <= 2
        running.replicas[0].process.send_signal(signal.SIGTERM)
        assert running.replicas[0].process.wait(20) == 0


def test_more_than_a_model_takes_at_once_does_not_begin(program: Small) -> None:
    found = folder_source(program.folder)
    encode = Remainders(replace(found, facts=replace(found.facts, max_input_s=2.0)), LoadOptions(threads=1))
    assert encode("audio", {"audio": np.zeros((1, 48_000), np.float32)})["hidden"].shape[1] > 100
    for shape in ((1, 48_001), (2, 8000)):
        with pytest.raises(InputError, match=r"takes one input of at most 2 s at once, came \["):
            encode("audio", {"audio": np.zeros(shape, np.float32)})
    encode.close()


def test_a_cut_may_have_tensors_of_no_dimension(program: Small) -> None:
    crossing = (TensorSpec("payload", "uint8", (1, "frames", 8)), TensorSpec("scale", "float32", ()))
    found = replace(folder_source(program.folder), cuts={"u8": ("payload", "scale")}, specs={"u8": crossing})
    assert _cuts(found, crossing[0]) == {"u8": {"payload": ("uint8", (1, None, 8)), "scale": ("float32", ())}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("/nowhere", "--listen", "tcp://127.0.0.1:0"),
            "zoo:NAME or the folder of a program, came '/nowhere'",
        ),
        (("PROGRAM", "--listen", "x", "--plan", "p1"), "a program has no plans"),
        (("PROGRAM",), "missing option '--listen'"),
        (("PROGRAM", "--listen", "x", "--slots", "0"), "'--slots': Input should be greater than or equal to 1"),
        (("PROGRAM", "--listen", "nowhere"), "nowhere"),
        (("PROGRAM", "--listen", "tcp://127.0.0.1:0", "--http", "x"), "expected HOST:PORT for HTTP, came 'x'"),
        (("PROGRAM", "--listen", "tcp://127.0.0.1:0", "--tier", "phone"), "expected a tier beyond the clients' own"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    words: tuple[str, ...],
    expected: str,
    program: Small,
    home: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert home
    given = [str(program.folder) if word == "PROGRAM" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["flagsplit", "decode-serve", *given])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line


def test_another_program_has_another_digest(tmp_path: Path) -> None:
    made = list[Small]()
    for index, seed in enumerate((1, 1, 2)):
        (tmp_path / str(index)).mkdir()
        made.append(small_program(tmp_path / str(index), "moonshine", seed))
    digests = [folder_digest(each.folder) for each in made]
    assert digests[0] == digests[1] != digests[2]
    (made[0].folder / "step.onnx").unlink()
    with pytest.raises(ConfigError, match=r"step\.onnx"):
        folder_digest(made[0].folder)
