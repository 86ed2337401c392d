"""What is asked wrongly: exit code 2, one line of what was expected, what came and what to do, nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.cli.conftest import Cli

from flagsplit.errors import BundleError

TIERS = ("--tiers", "phone,edge")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing command; flagsplit expects one of build, plan, inspect, run"),
        (("bild",), "no such command 'bild'. Did you mean 'build'; flagsplit expects one of build"),
        (("zoo",), "missing command; flagsplit zoo expects one of list, pull"),
        (("keys", "shew"), "flagsplit keys expects one of show, allow, revoke, trust"),
        (("--bogus",), "no such option: --bogus"),
        (("build",), "missing argument 'model'; flagsplit build --help"),
        (("build", "m.onnx", "-o", "x"), "missing option '--tiers'; flagsplit build --help"),
        (("build", "m.onnx", *TIERS), "missing option '-o' / '--output'"),
        (("build", "m.onnx", *TIERS, "-o"), "option '-o' requires an argument"),
        (("build", "m.onnx", *TIERS, "-o", "x", "--bogus"), "no such option: --bogus"),
        (("build", "m.onnx", *TIERS, "-o", "x", "--numerics", "odd"), "'odd' is not one of 'exact', 'fast'"),
        (("inspect", "a", "b"), "unexpected extra argument"),
        (("run", "b", "--repeat", "0"), "'--repeat': Input should be greater than or equal to 1"),
        (("run", "b", "--deadline", "soon"), "'--deadline': Input should be a valid number"),
        (("serve", "b", "--tier", "edge"), "missing option '--listen'"),
        (
            ("serve", "b", "--tier", "edge", "--listen", "x", "--slowdown", "half"),
            "'--slowdown': Input should be a valid",
        ),
        (("zoo", "pull", "squeezenet"), "the zoo has no 'squeezenet'; did you mean 'light-squeezenet'?"),
        (("keys", "allow", "me", "short"), "client me: expected a key of 40 Z85 characters, got 5"),
        (("keys", "allow", "../me", "a" * 40), "client name '../me': expected up to 64 letters"),
        (("keys", "revoke", "nobody"), "no authorized client is called 'nobody'; there are: none"),
        (("keys", "trust", "somewhere", "a" * 40), "address 'somewhere': expected tcp://HOST:PORT or ipc://PATH"),
        (("devices", "--catalogue", "none.json"), "none.json: cannot be read: No such file"),
    ],
)
def test_command_line(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert said in done.error


def _text(path: Path, _model: Path, _bundle: Path) -> None:
    path.write_text("hello\n")


def _empty(path: Path, _model: Path, _bundle: Path) -> None:
    path.touch()


def _folder(path: Path, _model: Path, _bundle: Path) -> None:
    path.mkdir()


def _nothing(path: Path, _model: Path, _bundle: Path) -> None:
    del path


def _truncated(path: Path, model: Path, _bundle: Path) -> None:
    path.write_bytes(model.read_bytes()[:3000])


def _a_bundle(path: Path, _model: Path, bundle: Path) -> None:
    shutil.copy(bundle, path)


def _a_truncated_bundle(path: Path, _model: Path, bundle: Path) -> None:
    path.write_bytes(bundle.read_bytes()[:-2000])


def _a_damaged_bundle(path: Path, _model: Path, bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


def _a_model(path: Path, model: Path, _bundle: Path) -> None:
    shutil.copy(model, path)


Make = Callable[[Path, Path, Path], None]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_text, "expected an ONNX model, given is not one"),
        (_empty, "expected an ONNX model, given is empty"),
        (_folder, "expected a model file, given is a folder"),
        (_nothing, "no such model file: given"),
        (_truncated, "is it complete?"),
        (_a_bundle, "a .flagsplit bundle goes to run, inspect or serve, not to build"),
    ],
)
def test_model_file(cli: Cli, tmp_path: Path, small_model: Path, small_bundle: Path, make: Make, said: str) -> None:
    make(tmp_path / "given", small_model, small_bundle)
    before = sorted(tmp_path.iterdir())
    done = cli("build", "given", *TIERS, "-o", "x.flagsplit")
    assert done.code == 2
    assert said in done.error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command", [("inspect",), ("run",), ("serve", "--tier", "edge", "--listen", "tcp://127.0.0.1:0")]
)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_text, "given is not a .flagsplit bundle, or is truncated"),
        (_empty, "given is not a .flagsplit bundle, or is truncated"),
        (_folder, "expected a bundle file, given is a folder"),
        (_nothing, "no such bundle: given"),
        (_a_truncated_bundle, "given is not a .flagsplit bundle, or is truncated"),
        (_a_damaged_bundle, "damaged"),
        (_a_model, "given is not a .flagsplit bundle"),
    ],
)
def test_bundle_file(
    cli: Cli,
    tmp_path: Path,
    small_model: Path,
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    make: Make,
    said: str,
) -> None:
    make(tmp_path / "given", small_model, small_bundle)
    monkeypatch.setenv("FLAGSPLIT_CACHE", str(tmp_path / "cache"))
    done = cli(command[0], "given", *command[1:])
    assert done.code == 2
    assert said in done.error
    assert {each.name for each in (tmp_path / "cache").glob("bundles/*")} <= {".lock"}


BUILD_ERRORS = [
    (("--tiers", "phone,car"), "unknown tier 'car': phone, edge and cloud have devices of their own"),
    (("--tiers", "phone,phone"), "--tiers expects different names with commas between them, came 'phone,phone'"),
    (("--tiers", ""), "--tiers expects different names"),
    (("--tiers", "phone,a/b", "--devices", "a/b=t4"), "tier 'a/b': expected a name such as 'phone'"),
    ((*TIERS, "--devices", "edge=toaster"), "device 'toaster' is not in the catalogue: choose from a100"),
    ((*TIERS, "--devices", "cloud=t4"), "--devices names tier 'cloud', expected one of phone, edge"),
    ((*TIERS, "--devices", "edge"), "--devices expects NAME=VALUE, came 'edge'"),
    ((*TIERS, "--devices", "edge=t4,edge=l4"), "--devices names 'edge' twice"),
    ((*TIERS, "--link", "edge=fast"), "link 'fast': expected BW/RTT such as '100mbit/5ms'"),
    ((*TIERS, "--link", "edge=0mbit/5ms"), "link '0mbit/5ms': up_bytes_per_s must be above 0"),
    ((*TIERS, "--link", "phone=wifi"), "--link names tier 'phone', expected one of edge"),
    ((*TIERS, "--dim", "N"), "--dim expects NAME=VALUE, came 'N'"),
    ((*TIERS, "--dim", "N=0"), "--dim N expects whole numbers of at least 1, came '0'"),
    ((*TIERS, "--dim", "N=1.5"), "--dim N expects whole numbers of at least 1, came '1.5'"),
    ((*TIERS, "--dim", "Q=2"), "expected a symbolic dimension of the inputs (N, H, W), came 'Q'"),
    ((*TIERS, "--shape", "image=1,3,,9"), "--shape image expects whole numbers of at least 1, came ''"),
    ((*TIERS, "--shape", "image=1,3,9"), "input 'image' has 4 dimensions, came 3"),
    ((*TIERS, "--shape", "image=1,4,9,9"), "input 'image' expects [N, 3, H, W], came [1, 4, 9, 9]"),
    ((*TIERS, "--shape", "photo=1,3,9,9"), "expected a graph input (image), came 'photo'"),
    ((*TIERS, "--shape", "image=1x3x9x9", "--dim", "H=8"), "dimension 'H' is 8 by name and 9 by the shapes"),
    ((*TIERS, "--catalogue", "none.json"), "none.json: cannot be read: No such file"),
    ((*TIERS, "--sla", "none.json"), "cannot read the SLA none.json: No such file"),
    ((*TIERS, "--sla", "."), "cannot read the SLA .: Is a directory"),
]


@pytest.mark.parametrize(("options", "said"), BUILD_ERRORS)
def test_build_options(cli: Cli, tmp_path: Path, small_model: Path, options: tuple[str, ...], said: str) -> None:
    done = cli("build", small_model, *options, "-o", "x.flagsplit")
    assert done.code == 2
    assert said in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sla", "said"),
    [
        ('{"memory', "sla.json: expected JSON"),
        ("[1]", "sla.json: "),
        ('{"speed": 1}', "sla.json: speed: Extra inputs are not permitted"),
        ('{"bounds": {"latency_ms": -1}}', "sla.json: bounds.latency_ms: Input should be greater than 0 (got -1)"),
        ('{"memory_mb": {"fridge": 1}}', "fridge"),
        (
            '{"memory_mb": {"phone": 0.001, "edge": 0.001}}',
            "no plan keeps the SLA; any one of these changes makes it possible: memory_mb of phone 0.001 -> ",
        ),
        (
            '{"keep_on": {"inputs": "phone"}, "forbid_tiers": ["phone"]}',
            "has no tier left",
        ),
    ],
)
def test_sla(cli: Cli, tmp_path: Path, small_model: Path, sla: str, said: str) -> None:
    (tmp_path / "sla.json").write_text(sla)
    (tmp_path / "x.flagsplit").write_text("what was there before")
    done = cli("build", small_model, *TIERS, "--sla", "sla.json", "-o", "x.flagsplit")
    assert done.code == 2
    assert said in done.error
    assert (tmp_path / "x.flagsplit").read_text() == "what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sla.json", "x.flagsplit"]


def test_output_that_cannot_be_written(cli: Cli, tmp_path: Path, small_model: Path, small_bundle: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for output, said in {
        "folder": "expected a file to write, folder is a folder",
        "pipe": "expected a file to write, pipe is a device or a pipe",
        "none/x": "cannot write none/x: the folder none does not exist; make it first",
        "file/x": "cannot write file/x: the folder file does not exist",
    }.items():
        for command in (("build", small_model, *TIERS), ("run", small_bundle, "--tier", "edge=tcp://127.0.0.1:1")):
            done = cli(*command, "-o", output)
            assert done.code == 2
            assert said in done.error
    assert (tmp_path / "pipe").is_fifo()
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o500)
    done = cli("build", small_model, *TIERS, "-o", "folder/x")
    assert done.code == 2
    assert "cannot write folder/x: Permission denied; choose another place" in done.error


def test_a_kernel_folder_cannot_be_written(cli: Cli, small_model: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    done = cli("build", small_model, *TIERS, "-o", "/proc/x.flagsplit")
    assert done.code == 2
    assert "cannot write /proc/x.flagsplit" in done.error


def test_what_is_read_is_not_overwritten(cli: Cli, tmp_path: Path, small_model: Path, small_bundle: Path) -> None:
    model, bundle = tmp_path / "model.onnx", tmp_path / "model.flagsplit"
    shutil.copy(small_model, model)
    shutil.copy(small_bundle, bundle)
    report = tmp_path / "int8.onnx"
    for file, command in (
        (model, ("plan", model, *TIERS, "--svg", model)),
        (model, ("quantize", model, "--calibrate", "zoo:page.png", "-o", report, "--report", model)),
        (bundle, ("run", bundle, "-o", bundle)),
        (bundle, ("run", bundle, "--trace-file", bundle)),
        (bundle, ("profile", bundle, "--tier", "phone", "-o", bundle)),
        (bundle, ("trace", bundle, "-o", bundle)),
    ):
        before = file.read_bytes()
        done = cli(*command)
        assert done.code == 2
        assert "would be read and written; give what is written another name" in done.error
        assert file.read_bytes() == before
    assert not report.exists()


def test_the_model_is_not_overwritten(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(small_model, model)
    done = cli("build", model, *TIERS, "-o", "model.onnx")
    assert done.code == 2
    assert "is the model itself" in done.error
    assert model.read_bytes() == small_model.read_bytes()


def test_serve(cli: Cli, small_bundle: Path) -> None:
    listen = ("--listen", "tcp://127.0.0.1:0")
    for options, said in {
        ("--tier", "car", *listen): "expected a tier of this bundle (phone, edge, cloud), came 'car'",
        ("--tier", "phone", *listen): "tier phone is the one that asks and runs inside the session; serve one of",
        ("--tier", "edge", "--listen", "here"): "address 'here': expected tcp://HOST:PORT or ipc://PATH",
        ("--tier", "edge", "--listen", "tcp://127.0.0.1:99999"): "expected a port up to 65535, got 99999",
        ("--tier", "edge", *listen, "--slowdown", "0.9"): "slowdown: expected a factor of 1 or more, came 0.9",
        ("--tier", "edge", *listen, "--beyond", "cloud"): "--beyond expects NAME=VALUE, came 'cloud'",
        ("--tier", "edge", *listen, "--beyond", "cloud=there"): "address 'there': expected tcp://HOST:PORT",
        ("--tier", "cloud", *listen, "--beyond", "edge=tcp://a:1"): "--beyond edge: expected a tier farther away",
    }.items():
        done = cli("serve", small_bundle, *options)
        assert done.code == 2
        assert said in done.error


def test_debugging_shows_the_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGSPLIT_DEBUG", "1")
    with pytest.raises(BundleError, match="no such bundle"):
        cli("inspect", "none.flagsplit")


def test_help_is_no_error(cli: Cli) -> None:
    for arguments in ((), ("build",), ("run",), ("serve",), ("zoo", "pull"), ("keys", "trust")):
        done = cli(*arguments, "--help")
        assert done.code == 0
        assert done.out.startswith(" ".join(("Usage: flagsplit", *arguments)))
        assert done.err == ""


def test_json_errors_leave_standard_output_empty(cli: Cli, small_model: Path) -> None:
    done = cli("build", small_model, "--tiers", "phone,phone", "-o", "x", "--json")
    assert done.code == 2
    assert done.error
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.out)
