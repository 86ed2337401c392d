"""`flagsplit decode-serve --gateway` and `flagsplit gateway` as processes, as operators and clients see them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.apps.decoder_service.conftest import Client
from tests.apps.text.small import tokenizer_json
from tests.chaos.decoders import Decoders
from tests.targets.generation.programs import Small, small_program

from flagsplit.apps.cli.main import main
from flagsplit.runtime.generation.options import GenerationOptions
from flagsplit.runtime.generation.sequential import generate
from flagsplit.targets.generation.ort_step import OrtStepModel

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0.8, "seed": 3}
Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Small:
    made = small_program(tmp_path_factory.mktemp("program"), "llama", 5)
    (made.folder / "tokenizer").write_bytes(tokenizer_json())
    facts = dataclasses.replace(made.facts, tokenizer="tokenizer.json")
    (made.folder / "program.json").write_bytes(facts.to_json())
    return made


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"FLAGSPLIT_HOME": str(tmp_path / "home")}


@pytest.fixture
def start(program: Small, home: dict[str, str]) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*words: str, log: Path | None = None) -> dict[str, Any]:
        command = [sys.executable, "-m", "flagsplit.apps.cli", "gateway", str(program.folder), "--json", *words]
        with (log or Path(os.devnull)).open("wb") as said:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env={**os.environ, **home})
        started.append(process)
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.readline())
        return found

    yield run
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout is not None
        process.stdout.close()


def client_of(url: str) -> Client:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return Client(host, int(port))


def wanted(program: Small) -> list[int]:
    model = OrtStepModel(program.folder, 1, 1)
    try:
        options = GenerationOptions(max_tokens=12, temperature=0.8, seed=3)
        return list(generate(model, None, (5, 6, 7), options))
    finally:
        model.close()


def test_beside_a_service_and_apart_from_it(program: Small, home: dict[str, str], start: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("anna anna-0123456789abcdef\n")
    tokens.chmod(0o600)
    words = ("--gateway", "127.0.0.1:0", "--model-name", "small", "--slots", "2", "--api-keys", str(tokens))
    expected = wanted(program)
    with Decoders(program.folder, 1, home, *words, "--http", "127.0.0.1:0") as decoders:
        near = client_of(decoders.replicas[0].about["gateway"])
        assert near.complete(**ASKED).status == 401
        near.headers["Authorization"] = "Bearer anna-0123456789abcdef"
        about = start("--cloud", decoders.addresses[0], "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        assert about["bundle"] == decoders.digest
        far = client_of(about["url"])
        answers = [client.complete(**ASKED).data for client in (near, far)]
        assert [answer["model"] for answer in answers] == ["small", "llama"]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert answers[0]["usage"]["completion_tokens"] == len(expected)
        watching = client_of(about["http"])
        assert watching.get("/readyz").data["ready"]
        metrics = watching.get("/metrics").body.decode()
        assert 'flagsplit_gateway_requests_total{route="/v1/completions",status="200"} 1.0' in metrics
        assert f'flagsplit_gateway_tokens_total{{route="/v1/completions"}} {len(expected)}.0' in metrics
        assert client_of(decoders.replicas[0].about["gateway"]).get("/readyz").status == 200
        metrics = client_of(decoders.replicas[0].about["http"]).get("/metrics").body.decode()
        assert f'flagsplit_gateway_tokens_total{{route="/v1/completions"}} {len(expected)}.0' in metrics
        assert f"flagsplit_tokens_total {2 * len(expected)}.0" in metrics
        decoders.replicas[0].process.send_signal(signal.SIGTERM)
        assert decoders.replicas[0].process.wait(20) == 0
        assert watching.get("/readyz").status == far.get("/readyz").status == 503


def test_it_says_why_a_service_takes_no_streams(start: Start, tmp_path: Path) -> None:
    """To the operator why, to clients that it is not their fault."""
    log, nobody = tmp_path / "log", "tcp://127.0.0.1:1"
    about = start("--cloud", nobody, "--listen", "127.0.0.1:0", "--max-wait-s", "0.3", log=log)
    found = client_of(about["url"]).complete(**ASKED)
    assert (found.status, found.headers["retry-after"]) == (503, "1")
    assert found.error == "no decoder service was there within 0.3 s; the log says why"
    (line,) = log.read_text().splitlines()
    assert f"{nobody} takes no streams: nothing listens" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("gateway", "PROGRAM"), "missing option '--cloud'"),
        (("gateway", "PROGRAM", "--cloud", ","), "--cloud expects addresses"),
        (("gateway", "PROGRAM", "--cloud", "nowhere"), "nowhere"),
        (("gateway", "/nowhere", "--cloud", "tcp://127.0.0.1:1"), "/nowhere"),
        (("decode-serve", "PROGRAM", "--gateway", "0.0.0.0:0"), "without TLS"),
        (("decode-serve", "PROGRAM", "--gateway", "127.0.0.1:0", "--api-keys", "/none"), "cannot read the tokens"),
        (("decode-serve", "PROGRAM", "--gateway", "127.0.0.1:0", "--tls-key", "/none"), "belong together"),
        (("decode-serve", "PROGRAM", "--engine", "cloud"), "'--engine'"),
        (
            ("decode-serve", "PROGRAM", "--replicas", "3"),
            "are of --engine ray, came the local engine",
        ),
        pytest.param(
            ("decode-serve", "PROGRAM", "--engine", "ray"),
            'needs Ray, which is not installed; pip install "flagsplit[ray]"',
            marks=pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed"),
        ),
        (("decode-serve", "PROGRAM", "--replicas", "3", "--max-replicas", "2", "--engine", "ray"), "--max-replicas"),
    ],
)
def test_misuse_is_one_line(
    words: tuple[str, ...],
    expected: str,
    program: Small,
    home: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLAGSPLIT_HOME", home["FLAGSPLIT_HOME"])
    given = [str(program.folder) if word == "PROGRAM" else word for word in words]
    listen = ["--listen", "tcp://127.0.0.1:0"] if words[0] == "decode-serve" else []
    monkeypatch.setattr(sys, "argv", ["flagsplit", *given, *listen])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
