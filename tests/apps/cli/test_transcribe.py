"""`flagsplit transcribe`: what it prints of real speech, and what becomes of files that are none."""

import json
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.apps.cli.conftest import Cli, Spawn
from tests.apps.speech.wav_files import chunk, fmt, pcm16, riff, sparse_silence

import flagsplit
from flagsplit.apps.speech.known import BECKETT, TWO_CITIES
from flagsplit.apps.speech.wer import word_errors

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def recordings(own_folders: None, speech_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of beckett.wav and two-cities.wav."""
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(speech_cache))
    return speech_cache / "zoo"


@pytest.fixture(scope="session")
def beckett(speech_cache: Path) -> NDArray[np.float32]:
    with wave.open(str(speech_cache / "zoo" / "beckett.wav")) as file:
        return np.asarray(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, np.float32)


def test_beckett(cli: Cli, recordings: Path) -> None:
    done = cli("transcribe", recordings / "beckett.wav")
    assert (done.code, done.out, done.err) == (0, BECKETT + "\n", "")


def test_two_cities(cli: Cli, recordings: Path) -> None:
    data = cli("transcribe", recordings / "two-cities.wav", "--json").data
    assert word_errors(TWO_CITIES, data["text"]).rate < 0.03
    assert data["plan"] == "all-phone"
    assert data["words_by_tier"] == {"phone": len(data["text"].split())}
    assert data["seconds"] == pytest.approx(44.374, abs=1e-3)
    words = [word for segment in data["segments"] for word in segment["words"]]
    assert " ".join(word["text"] for word in words) == data["text"]
    times = [time for word in words for time in (word["start_s"], word["end_s"])]
    assert times == sorted(times)
    assert (times[0], times[-1]) == pytest.approx((1.2, 42.0), abs=1.5)


def test_what_crosses(cli: Cli, recordings: Path) -> None:
    """Hidden states are 288 numbers of 4 bytes for each 384 samples, of the parts in which somebody speaks."""
    data = cli("transcribe", recordings / "beckett.wav", "--plan", "split", "--json").data
    assert (data["text"], data["words_by_tier"]) == (BECKETT, {"cloud": 12})
    assert 0.8 < data["crossed_bytes"] / (data["seconds"] * 16_000 / 384 * 288 * 4) < 1


def test_the_same_from_python(recordings: Path) -> None:
    found = flagsplit.transcribe(recordings / "beckett.wav")
    assert found.text == BECKETT
    assert found.words[0].where == "phone"


def test_formats(cli: Cli, recordings: Path) -> None:
    path = recordings / "beckett.wav"
    srt = cli("transcribe", path, "--format", "srt").out
    assert srt.startswith("1\n00:00:00,352 --> ")
    assert srt.count(" --> ") == 6
    assert cli("transcribe", path, "--format", "vtt").out.startswith("WEBVTT\n\n00:00:00.352 --> ")
    assert cli("transcribe", path, "--timestamps").out == f"[0:00:00.4 0:00:08.9 phone] {BECKETT}\n"
    assert cli("transcribe", path, "--format", "json").data["text"] == BECKETT


def test_words_come_while_somebody_speaks(cli: Cli, beckett: NDArray[np.float32], tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(pcm16(beckett[: 3 * 16_000]))
    done = cli("transcribe", "x.wav", "--pace", "--json")
    assert done.code == 0
    # When runs come depends on the host, and so may a word that two of them agree on.
    assert word_errors("Ever tried, ever failed.", done.data["text"]).rate <= 0.25
    assert done.data["took_s"] > 2.9
    assert 0 < done.data["latency_ms"]["p50"] < 5_000
    assert "after they were said" in done.err


def test_another_rate_and_two_channels(cli: Cli, beckett: NDArray[np.float32], tmp_path: Path) -> None:
    times = np.arange(round(len(beckett) * 44.1 / 16)) * 16 / 44.1
    stereo = np.repeat(np.interp(times, np.arange(len(beckett)), beckett).astype(np.float32), 2)
    (tmp_path / "x.wav").write_bytes(pcm16(stereo, 44_100, 2))
    done = cli("transcribe", "x.wav")
    assert (done.code, done.out, done.err) == (0, BECKETT + "\n", "")


def test_a_header_that_lies(cli: Cli, beckett: NDArray[np.float32], tmp_path: Path) -> None:
    """More promised than there is: what is there is read, and it is said."""
    data = (beckett * 32768).astype("<i2").tobytes()
    (tmp_path / "x.wav").write_bytes(riff([fmt(), chunk(b"data", data, size=10**9)]))
    done = cli("transcribe", "x.wav")
    assert (done.code, done.out) == (0, BECKETT + "\n")
    (line,) = done.err.splitlines()
    assert line.startswith("flagsplit: x.wav: its header says 1000000000 bytes of samples, the file has ")


def test_silence(cli: Cli, tmp_path: Path) -> None:
    sparse_silence(tmp_path / "x.wav", 20, 8_000)
    done = cli("transcribe", "x.wav")
    assert (done.code, done.out, done.err) == (0, "", "flagsplit: x.wav: nobody speaks in its 20.0 s\n")
    noise = 0.02 * np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32)
    (tmp_path / "y.wav").write_bytes(pcm16(noise))
    assert cli("transcribe", "y.wav", "--json").data["text"] == ""
    assert cli("transcribe", "y.wav", "--format", "vtt").out == "WEBVTT\n\n"


REFUSED = {
    "no samples": (riff([fmt(), chunk(b"data", b"")]), "has 0 samples"),
    "empty": (b"", "is empty"),
    "text": (b"It was the best of times,\n", "is text"),
    "image": (b"\x89PNG\r\n\x1a\n0000IHDR", "is a PNG image"),
    "wrong rate": (riff([fmt(rate_hz=0), chunk(b"data", b"abcd")]), "0 samples a second"),
    "contradiction": (riff([fmt(channels=2, frame_bytes=2), chunk(b"data", b"abcd")]), "contradicts itself"),
    "mp3 inside": (riff([fmt(85), chunk(b"data", b"abcd")]), "WAV format 85"),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED)
def test_files_that_are_refused(cli: Cli, tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x.wav").write_bytes(data)
    done = cli("transcribe", "x.wav")
    assert done.code == 2
    assert why in done.error


def test_what_is_no_file(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "no regular file"), (".", "is a folder"), ("none.wav", "No such file")):
        done = cli("transcribe", name)
        assert done.code == 2
        assert why in done.error


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "zoo:moonshin"], "did you mean zoo:moonshine?"),
        (["--model", "nowhere"], "expected zoo:NAME"),
        (["--format", "srt", "--json"], "leave out one"),
        (["--format", "srt", "--timestamps"], "has the times in it"),
    ],
)
def test_options_that_are_refused(cli: Cli, recordings: Path, options: list[str], why: str) -> None:
    done = cli("transcribe", recordings / "beckett.wav", *options)
    assert done.code == 2
    assert why in done.error


_MEASURED = """
import atexit, pathlib, sys
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr))
from flagsplit.apps.cli.main import main
main()
"""


def _run_and_measure(*arguments: object) -> tuple[str, int]:
    """What it printed, and the most memory that it had, in bytes.

    What a process is told of its children counts what they had of this one before they began.
    """
    command = [sys.executable, "-c", _MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (peak,) = (line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return done.stdout, int(peak) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_two_hours(beckett: NDArray[np.float32], tmp_path: Path) -> None:
    """They are never in memory as a whole, and what is said at their end is heard, with its time."""
    path = sparse_silence(tmp_path / "x.wav", 7_200)
    with path.open("r+b") as file:
        file.seek(-2 * len(beckett), os.SEEK_END)
        file.write((beckett * 32768).astype("<i2").tobytes())
    out, needed = _run_and_measure("transcribe", path, "--timestamps")
    assert out.startswith("[1:59:50.4 1:59:58.9 phone] ")
    assert word_errors(BECKETT, out.partition("]")[2]).rate == 0
    whole = 7_200 * 16_000 * 4
    models = 400e6
    assert needed < models + whole / 3


def test_a_service_that_is_killed(spawn: Spawn, recordings: Path) -> None:
    """Nothing is lost and nothing comes twice: the phone goes on."""
    service = spawn("decode-serve", "zoo:moonshine", "--listen", "tcp://127.0.0.1:0", "--json")
    address = json.loads(service.first_line())["address"]
    process = spawn("transcribe", recordings / "two-cities.wav", "--cloud", address, "--timestamps")
    first = process.first_line()
    service.signal(signal.SIGKILL)
    done = process.end(60)
    lines = [first, *done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert word_errors(TWO_CITIES, " ".join(line.partition("]")[2] for line in lines)).rate < 0.03
    places = [line.partition("]")[0].split()[-1] for line in lines]
    assert places[0] == "cloud"
    assert places[-1] == "phone"


def test_an_interrupt(spawn: Spawn, recordings: Path) -> None:
    process = spawn("transcribe", recordings / "two-cities.wav", "--pace")
    assert process.process.stdout is not None
    assert process.process.stdout.read(2) == "It"
    process.signal(signal.SIGINT)
    done = process.end()
    assert done.code == 130
    assert done.err == "flagsplit: interrupted\n"
