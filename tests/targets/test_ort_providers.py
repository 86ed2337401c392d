"""ONNX Runtime with other providers than the CPU's: what is refused on a host without them, and what a session says."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tests.apps import models

from flagsplit import flagir
from flagsplit.apps.deviation import EXACT, Tolerance
from flagsplit.apps.tolerances import tolerance_of
from flagsplit.errors import BundleError, ConfigError
from flagsplit.flagir.segments import segment_of
from flagsplit.targets import ort_kernels
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import CompileOptions, LoadOptions, StoredArtifact
from flagsplit.targets.onnx_engine import nodes_by_provider, refuse_fallback

HERE = LoadOptions(threads=1)


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    model = flagir.read_model(models.save(models.wide(layers=2, width=8), tmp_path / "m.onnx"))
    flagir.canonicalize(model)
    flagir.save(model, tmp_path)
    return model


def built(model: ir.Model, folder: Path, provider: str, device: str = "", numerics: Any = "fast") -> StoredArtifact:
    segment = segment_of(model, [node.name or "" for node in model.graph])
    choices = {"provider": provider} if provider else {}
    made = get_target("ort").compile(model, [segment], CompileOptions(numerics, device=device, choices=choices))
    return made.store(folder / "out", folder / flagir.WEIGHTS_NAME)


def load(stored: StoredArtifact) -> Any:
    return get_target("ort").load(stored, next(iter(stored.entries)), HERE)


def test_the_cpu_is_the_default_and_says_so(model: ir.Model, tmp_path: Path) -> None:
    unasked, asked = (built(model, tmp_path / name, provider) for name, provider in (("a", ""), ("b", "cpu")))
    assert unasked.options == {"numerics": "fast"}
    assert asked.options == {"numerics": "fast", "choice.provider": "cpu"}
    (tmp_path / "b" / flagir.WEIGHTS_NAME).write_bytes((tmp_path / flagir.WEIGHTS_NAME).read_bytes())
    executable = load(asked)
    assert executable.run({"y0": np.ones((1, 8), np.float32)})
    executable.close()


@pytest.mark.parametrize(
    ("provider", "engine", "package"),
    [
        ("cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
        ("tensorrt", "TensorrtExecutionProvider", "Jetson"),
        ("openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino"),
    ],
)
def test_a_missing_provider_is_refused(
    model: ir.Model, tmp_path: Path, provider: str, engine: str, package: str
) -> None:
    if engine in onnxruntime.get_available_providers():
        pytest.skip(f"this host lists {engine}")
    stored = built(model, tmp_path, provider)
    assert stored.options["provider"] == provider
    with pytest.raises(ConfigError, match=f"has no {engine}, but .*{package}.*ort.provider=cpu"):
        load(stored)


def test_a_provider_by_device(model: ir.Model, tmp_path: Path) -> None:
    chosen = "jetson:tensorrt, h100:cuda"
    found = {device: built(model, tmp_path / device, chosen, device).options for device in ("jetson", "h100", "phone")}
    assert [options.get("provider") for options in found.values()] == ["tensorrt", "cuda", None]
    assert {options["choice.provider"] for options in found.values()} == {chosen}


@pytest.mark.parametrize("chosen", ["npu", "h100:", "h100:npu", "cuda,", "cuda;cpu"])
def test_no_such_provider(model: ir.Model, tmp_path: Path, chosen: str) -> None:
    with pytest.raises(ConfigError, match=r"ort\.provider expects cpu .*, openvino"):
        built(model, tmp_path, chosen)


def test_an_artifact_for_a_provider_of_another_version(model: ir.Model, tmp_path: Path) -> None:
    stored = built(model, tmp_path, "")
    odd = StoredArtifact(stored.folder, stored.entries, {"provider": "npu"}, stored.weights)
    with pytest.raises(ConfigError, match="the artifact is for the provider 'npu'"):
        load(odd)


def test_exact_numerics_are_for_the_cpu(model: ir.Model, tmp_path: Path) -> None:
    assert built(model, tmp_path, "h100:cuda", "phone", "exact").options["numerics"] == "exact"
    with pytest.raises(ConfigError, match="exact numerics are promised on the CPU alone"):
        built(model, tmp_path, "cuda", numerics="exact")


def test_what_verify_allows(model: ir.Model, tmp_path: Path) -> None:
    options = {name: built(model, tmp_path / name, name).options for name in ("cpu", "cuda", "tensorrt", "openvino")}
    found = {name: tolerance_of("ort", each, {}) for name, each in options.items()}
    assert found["cuda"] == found["openvino"] == found["cpu"] == Tolerance("norm", 1e-4)
    assert found["tensorrt"] == Tolerance("norm", 1e-2)
    assert tolerance_of("ort", built(model, tmp_path / "e", "", numerics="exact").options, {}) == EXACT


class _Claims:
    """A stand-in for ONNX Runtime that claims a provider, with a session on the CPU that says what it is told.

    Attributes:
        asked: what the session was asked for.
    """

    def __init__(self, claims: str, got: Sequence[str], nodes: Mapping[str, int]) -> None:
        self.claims, self.got, self.nodes = claims, got, nodes
        self.asked: list[Any] = []
        self.made = onnxruntime.InferenceSession

    def listed(self) -> list[str]:
        return [self.claims, "CPUExecutionProvider"]

    def session(self, data: bytes, settings: Any, providers: Sequence[Any], enable_fallback: int) -> Any:
        assert enable_fallback == 0
        self.asked = list(providers)
        real = self.made(data, settings, providers=["CPUExecutionProvider"])
        parts = [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in self.nodes.items()
        ]
        return SimpleNamespace(
            get_providers=lambda: list(self.got),
            get_provider_graph_assignment_info=lambda: parts,
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            run=real.run,
        )


def claiming(monkeypatch: pytest.MonkeyPatch, got: Sequence[str], nodes: Mapping[str, int]) -> _Claims:
    stand_in = _Claims("CUDAExecutionProvider", got, nodes)
    monkeypatch.setattr(onnxruntime, "get_available_providers", stand_in.listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", stand_in.session)
    return stand_in


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_a_silent_fallback_is_refused(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = built(model, tmp_path, "cuda")
    claiming(monkeypatch, [CPU], {CPU: 5})
    with pytest.raises(
        ConfigError, match=f"lists {CUDA}, but its session got {CPU} and would run on the CPU without a word"
    ):
        load(stored)


def test_a_provider_that_takes_no_node_is_refused(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = built(model, tmp_path, "cuda")
    claiming(monkeypatch, [CUDA, CPU], {CPU: 5})
    with pytest.raises(ConfigError, match=f"{CUDA} takes none of the 5 nodes of .*onnx"):
        load(stored)


def test_single_nodes_on_the_cpu_are_told(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored = built(model, tmp_path, "tensorrt")
    stand_in = claiming(monkeypatch, ["TensorrtExecutionProvider", CUDA, CPU], {CUDA: 3, CPU: 2})
    stand_in.claims = "TensorrtExecutionProvider"
    with caplog.at_level(logging.WARNING, "flagsplit.targets.onnx_engine"):
        executable = load(stored)
    assert "2 of 5 nodes of " in caplog.text
    assert "run on the CPU beside TensorrtExecutionProvider" in caplog.text
    assert executable.run({"y0": np.ones((1, 8), np.float32)})
    assert stand_in.asked == [("TensorrtExecutionProvider", {}), CPU]  # CUDA is not listed here


def test_products_of_32_bits_are_asked_for(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = built(model, tmp_path, "cuda")
    stand_in = claiming(monkeypatch, [CUDA, CPU], {CUDA: 5})
    load(stored).close()
    assert stand_in.asked == [(CUDA, {"use_tf32": "0"}), CPU]


def test_a_provider_that_cannot_be_made(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    stored = built(model, tmp_path, "cuda")
    claiming(monkeypatch, [], {})
    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(ConfigError, match=r"lists CUDAEx.*, but cannot make it: libcudnn\.so\.9.*onnxruntime-gpu"):
        load(stored)


def test_a_file_that_the_provider_cannot_load(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is there then: it opens something else."""
    stored = built(model, tmp_path, "cuda")
    stored.entry(next(iter(stored.entries))).write_bytes(b"no model")
    claiming(monkeypatch, [CUDA, CPU], {CUDA: 1})
    with pytest.raises(BundleError, match=r"cannot load .*\.onnx with CUDAExecutionProvider"):
        load(stored)


@pytest.mark.parametrize("got", [[], [CPU], [CPU, CUDA]])
def test_refuse_fallback(got: list[str]) -> None:
    refuse_fallback([CUDA, CPU], ["TensorrtExecutionProvider", CUDA], "install it")
    with pytest.raises(ConfigError, match="install it"):
        refuse_fallback(got, [CUDA], "install it")


def test_kernels_are_asked_apart_where_other_providers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ort_kernels.cpu_kernels()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    apart = ort_kernels.cpu_kernels()
    assert here is not None
    assert apart is not None
    assert len(apart) == len(here) > 100
    assert [tuple(each) for each in apart["", "Relu"]] == here["", "Relu"]


def test_a_package_that_does_not_tell_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends when it is asked."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    verdict = get_target("ort").supports(ir.node("Relu", [ir.Value(name="x")]))
    assert (verdict.supported, verdict.confidence) == (True, "low")


def test_nodes_are_counted_where_the_engine_tells(model: ir.Model, tmp_path: Path) -> None:
    stored = built(model, tmp_path, "")
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    data = (stored.folder / next(iter(stored.entries.values()))).read_bytes()
    session = onnxruntime.InferenceSession(data, settings, providers=[CPU])
    counts = nodes_by_provider(session)
    assert set(counts) == {CPU}
    assert counts[CPU] >= 2
    assert nodes_by_provider(SimpleNamespace()) == {}
