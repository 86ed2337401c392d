"""`flagsplit run` against workers on threads of this process: plans, inputs, who is there and who is not."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.apps import models
from tests.apps.cli.conftest import Cli
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.runtime.bundle import Bundle

NOBODY = ("--tier", "edge=tcp://127.0.0.1:1")


def tiers(addresses: Mapping[str, str]) -> list[str]:
    return [word for tier, address in addresses.items() for word in ("--tier", f"{tier}={address}")]


@pytest.fixture
def image() -> models.Array:
    return np.asarray(np.random.default_rng(7).standard_normal((2, 3, 20, 24))).astype(np.float32)


def test_every_plan_equals_the_unsplit_model(cli: Cli, serve: Serve, small_bundle: Path, split_bundle: Path) -> None:
    for path in (small_bundle, split_bundle):
        bundle = flagsplit.open(path)
        addresses = serve(bundle)
        for plan in bundle.plans.pool.plans:
            data = cli("run", path, *tiers(addresses), "--plan", plan.name, "--check", "--json").data
            assert data["plan"] == plan.name
            assert data["plans"] == [plan.name]
            assert data["attempts"] == 1
            assert data["basis"] == "measured"
            assert data["workers"] == {"edge": "up", "cloud": "up"}
            assert data["check"]["max_abs"] == 0
            assert [link["messages"] for link in data["links"]] == [1] * len(data["links"])
            assert {tier["tier"] for tier in data["tiers"] if tier["segments"]} == {
                bundle.tiers[index] for index in plan.used_tiers
            }


def test_answers_of_many_requests_are_those_of_the_original(
    cli: Cli, serve: Serve, small_model: Path, split_bundle: Path, image: models.Array, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", image=image)
    addresses = serve(flagsplit.open(split_bundle))
    data = cli(
        "run", split_bundle, *tiers(addresses), "--input", "in.npz", "--repeat", 5, "-o", "out.npz", "--json"
    ).data
    assert data["requests"] == 5
    assert data["outputs"]["scores"] == {"dtype": "float32", "shape": [2, 10]}
    expected = models.answers_of(small_model, {"image": image})
    with np.load(tmp_path / "out.npz") as came:
        assert set(came.files) == set(expected)
        np.testing.assert_allclose(came["scores"], expected["scores"], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(came["label"], expected["label"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_made_up_inputs_are_the_same_every_time(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli("run", small_bundle, *NOBODY, "--dim", "N=2", "--seed", seed, "-o", f"{name}.npz").code == 0
    arrays = {name: np.load(tmp_path / f"{name}.npz")["scores"] for name in "abc"}
    assert arrays["a"].shape == (2, 10)
    np.testing.assert_array_equal(arrays["a"], arrays["b"])
    assert not np.array_equal(arrays["a"], arrays["c"])


def test_outputs_of_any_name_and_of_text_are_written(cli: Cli, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] file, string[N] allow_pickle)
    { file = Relu(x) allow_pickle = Cast<to = 8>(file) }"""
    models.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert cli("build", "m.onnx", "--tiers", "phone", "-o", "m.flagsplit").code == 0
    np.savez(tmp_path / "in.npz", x=np.array([-1, 2], np.float32))
    assert cli("run", "m.flagsplit", "--input", "in.npz", "-o", "out.npz").code == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as came:
        assert came["file"].tolist() == [0, 2]
        assert came["allow_pickle"].tolist() == ["0", "2"]


def test_a_worker_that_is_not_there(cli: Cli, small_bundle: Path) -> None:
    done = cli("run", small_bundle, *NOBODY, "--json")
    assert done.code == 0
    assert done.data["plan"] == "all-phone"
    assert done.err.startswith("flagsplit: tier edge is not there (nothing listens at tcp://127.0.0.1:1")
    assert done.err.count("\n") == 1
    done = cli("run", small_bundle, *NOBODY, "--plan", "all-edge")
    assert done.code == 1
    assert "plan all-edge needs tier edge, which is not there: nothing listens" in done.error
    done = cli("run", small_bundle, *NOBODY, "--plan", "all-cloud")
    assert done.code == 1
    assert "no address; give --tier cloud=tcp://HOST:PORT" in done.error


def test_no_plan_is_left(cli: Cli, split_bundle: Path) -> None:
    done = cli("run", split_bundle, *NOBODY, "--deadline", "0.5")
    assert done.code == 1
    *warnings, last = done.err.splitlines()
    assert all(line.startswith("flagsplit: tier edge is not there") for line in warnings)
    assert last.startswith("flagsplit: no ")
    assert done.out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--plan", "fastest"), "plan 'fastest' is not in the pool: choose from all-phone, all-edge, all-cloud"),
        (("--tier", "car=tcp://a:1"), "expected a tier of this bundle (phone, edge, cloud), came 'car'"),
        (("--tier", "phone=tcp://a:1"), "tier phone runs in this process; name only the tiers beyond it"),
        (("--tier", "edge"), "--tier expects NAME=VALUE, came 'edge'"),
        (("--tier", "edge=here"), "address 'here': expected tcp://HOST:PORT or ipc://PATH"),
        (("--tier", "edge=tcp://a"), "address 'tcp://a': expected tcp://HOST:PORT"),
        (("--tier", "edge=tcp://a:0"), "a wildcard can be listened on, not connected to"),
        (("--tier", "edge=tcp://a:1", "--tier", "edge=tcp://b:1"), "--tier names 'edge' twice; give it once"),
        ((*NOBODY, "--dim", "Q=1"), "--dim expects an open dimension (H, N, W), came 'Q'"),
        ((*NOBODY, "--dim", "N=x"), "--dim N expects whole numbers of at least 1, came 'x'"),
        ((*NOBODY, "--input", "none.npz"), "no such input file: none.npz"),
        ((*NOBODY, "--input", "."), "no such input file: ."),
        ((*NOBODY, "--input", "none.npz", "--dim", "N=1"), "--dim is for made-up inputs"),
        (("--slowdown", "phone=0.5"), "slowdown: expected a factor of 1 or more, came 0.5"),
        (("--slowdown", "edge=nan"), "slowdown: expected a factor of 1 or more, came nan"),
        (("--slowdown", "edge=much"), "--slowdown expects NAME=NUMBER, came edge=much"),
        (("--slowdown", "car=2"), "expected a tier of this bundle (phone, edge, cloud), came 'car'"),
        ((*NOBODY, "--slowdown", "edge=2"), "slowdown of edge: its worker is not started here"),
        ((*NOBODY, "-o", "none/x.npz"), "cannot write none/x.npz: the folder none does not exist"),
    ],
)
def test_misuse(cli: Cli, small_bundle: Path, options: tuple[str, ...], said: str) -> None:
    done = cli("run", small_bundle, *options)
    assert done.code == 2
    assert said in done.error


def test_figures_of_slowed_tiers_are_emulated(cli: Cli, serve: Serve, small_bundle: Path) -> None:
    addresses = serve(flagsplit.open(small_bundle))
    for options in (("--slowdown", "phone=2"), ("--emulated",)):
        done = cli("run", small_bundle, *tiers(addresses), *options, "--json")
        assert done.data["basis"] == "emulated"
        assert done.data["predicted"]["basis"] == "modelled"
    table = cli("run", small_bundle, *tiers(addresses), "--slowdown", "phone=2").out
    assert "(emulated)" in table
    assert "ms emulated on this host" in table
    assert "measured" not in table


def test_out_of_memory_is_no_bug_of_ours(cli: Cli, small_bundle: Path) -> None:
    done = cli("run", small_bundle, *NOBODY, "--dim", "N=999999999")
    assert done.code == 1
    assert "out of memory" in done.error


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "expected inputs 'image', came none"),
        ({"photo": np.zeros((1, 3, 8, 8), np.float32)}, "expected inputs 'image', came 'photo'; rename or add them"),
        ({"image": np.zeros((1, 3, 8, 8))}, "expected dtype float32, came float64; convert it with .astype('float32')"),
        ({"image": np.zeros((1, 2, 8, 8), np.float32)}, "expected shape [N, 3, H, W], came [1, 2, 8, 8]"),
        ({"image": np.zeros((3, 8, 8), np.float32)}, "expected shape [N, 3, H, W], came [3, 8, 8]"),
        ({"image": np.array([{}], dtype=object)}, "expected an .npz file of plain arrays"),
    ],
)
def test_wrong_inputs(
    cli: Cli, tmp_path: Path, small_bundle: Path, arrays: dict[str, np.ndarray[Any, Any]], said: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    done = cli("run", small_bundle, *NOBODY, "--input", "in.npz")
    assert done.code == 2
    assert said in done.error


def test_files_that_are_no_npz(cli: Cli, tmp_path: Path, small_bundle: Path, image: models.Array) -> None:
    np.savez(tmp_path / "good.npz", image=image)
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "one.npy", image)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("image.npy", "hello")
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    for name, data in {"cut.npz": good[:2000], "flip.npz": bytes(damaged), "empty.npz": b"", "t.npz": b"hi"}.items():
        (tmp_path / name).write_bytes(data)
    for name in ("one.npy", "text.npz", "cut.npz", "flip.npz", "empty.npz", "t.npz"):
        done = cli("run", small_bundle, *NOBODY, "--input", name)
        assert done.code == 2
        assert "expected" in done.error
        assert name in done.error or "image" in done.error


def test_an_engine_that_refuses_the_inputs(cli: Cli, tmp_path: Path, small_bundle: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.zeros((1, 3, 0, 8), np.float32))
    done = cli("run", small_bundle, *NOBODY, "--input", "in.npz")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("flagsplit: ONNX Runtime could not run the model on these inputs")


def test_two_workers_at_one_address(cli: Cli, serve: Serve, small_bundle: Path) -> None:
    addresses = serve(flagsplit.open(small_bundle))
    done = cli("run", small_bundle, *tiers({"edge": addresses["edge"], "cloud": addresses["edge"]}))
    assert done.code == 2
    assert "is connected already, as 'edge'" in done.error


def test_two_workers_swapped(cli: Cli, serve: Serve, small_bundle: Path) -> None:
    addresses = serve(flagsplit.open(small_bundle))
    done = cli("run", small_bundle, *tiers({"edge": addresses["cloud"], "cloud": addresses["edge"]}))
    assert done.code == 1
    assert "refused the session" in done.error
    assert "serves tier" in done.error
    assert "edge" in done.error
    assert "cloud" in done.error


def test_a_client_that_is_not_allowed(cli: Cli, serve: Serve, small_bundle: Path, tmp_path: Path) -> None:
    addresses = serve(flagsplit.open(small_bundle))
    worker_key = cli("keys", "show", "--json").data["public_key"]
    stranger = ("--keys", tmp_path / "stranger")
    ran = cli("run", small_bundle, *tiers(addresses), *stranger, "--json")
    assert ran.code == 0
    assert ran.data["plan"] == "all-phone"
    assert "closed the CURVE handshake: we expect the server key" in ran.err
    for address in addresses.values():
        assert cli("keys", "trust", address, worker_key, *stranger).code == 0
    key = cli("keys", "show", *stranger, "--json").data["public_key"]
    ran = cli("run", small_bundle, *tiers(addresses), *stranger, "--plan", "all-edge")
    assert ran.code == 1
    assert "plan all-edge needs tier edge, which is not there" in ran.error
    assert f"refused our key (status 400): add our public key {key} to the authorized keys there" in ran.error
    assert cli("keys", "allow", "stranger", key).code == 0
    try:
        ran = cli("run", small_bundle, *tiers(addresses), *stranger, "--plan", "all-edge", "--check", "--json")
        assert ran.data["check"]["max_abs"] == 0
    finally:
        assert cli("keys", "revoke", "stranger").code == 0


def test_bundles_of_others_are_refused(cli: Cli, serve: Serve, small_bundle: Path, other_bundle: Path) -> None:
    ours, theirs = flagsplit.open(small_bundle), flagsplit.open(other_bundle)
    addresses = serve(theirs)
    done = cli("run", small_bundle, *tiers(addresses))
    assert done.code == 1
    assert names_both(done.error, ours, theirs)


def names_both(line: str, ours: Bundle, theirs: Bundle) -> bool:
    return all(bundle.digest[:12] in line for bundle in (ours, theirs))
