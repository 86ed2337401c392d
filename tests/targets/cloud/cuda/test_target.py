"""The cuda target without a GPU: what it says, what it writes, how it refuses; and its program on the CPU."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.targets.cloud.cuda.parts import drawn, expected, graph, ran

from flagsplit import flagir
from flagsplit.apps.zoo import pull
from flagsplit.errors import BundleError, ConfigError, InputError, ModelError
from flagsplit.flagir import Skeleton
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.cloud.cuda.lowering.program import build_program, to_module
from flagsplit.targets.cloud.cuda.lowering.registry import LOWERINGS
from flagsplit.targets.cloud.cuda.target import CudaTarget
from flagsplit.targets.cloud.cuda.with_ort import check_providers
from flagsplit.targets.interface import CompileOptions, LoadOptions, StoredArtifact

CONV = graph("y = Conv (x, w)", "float[1,3,8,8] x", "float[1,40,6,6] y", {"w": drawn(40, 3, 3, 3)})


def needs_torch() -> None:
    pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)


def stored(folder: Path, **choices: str) -> StoredArtifact:
    """The artifact of a convolution, whose weights are in the shared file."""
    model = CONV.clone()
    flagir.save(model, folder)
    weights = folder / flagir.WEIGHTS_NAME
    segment = segment_of(model, [node.name or "" for node in model.graph])
    artifact = CudaTarget().compile(model, [segment], CompileOptions(choices=choices, weights=weights))
    return artifact.store(folder / "artifact", weights)


def load(artifact: StoredArtifact) -> None:
    (segment,) = artifact.entries
    CudaTarget().load(artifact, segment, LoadOptions()).close()


def test_description() -> None:
    about = get_target("cuda").describe()
    assert about.name == about.extra == "cuda"
    assert about.choices["precision"] == ("fp16", "bf16", "fp32")
    assert about.static_shapes
    assert len(LOWERINGS) >= 110


def test_weights_are_those_of_the_bundle(tmp_path: Path) -> None:
    artifact = stored(tmp_path)
    (file,) = (artifact.inside(name) for name in artifact.entries.values())
    (weight,) = onnx.load(file, load_external_data=False).graph.initializer
    assert {each.key: each.value for each in weight.external_data}["location"] == flagir.WEIGHTS_NAME
    assert artifact.options["compiled"] == "on the device that loads it"


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a choice of the cuda target .*came 'speed'"):
        stored(tmp_path, speed="high")


def test_what_depends_on_data_is_refused() -> None:
    model = graph("y = NonZero (x)", "float[3,4] x", "int64[2,n] y")
    (node,) = model.graph
    node.outputs[0].shape = None
    verdict = CudaTarget().supports(node)
    assert not verdict.supported
    assert "depends on data" in verdict.reason
    with pytest.raises(ModelError, match=r"NonZero.*depends on data"):
        CudaTarget().compile_parts([ChipPart("part", model)], CompileOptions())


def test_an_operator_may_be_written_out() -> None:
    (node,) = graph("y = MeanVarianceNormalization <axes = [0, 2]> (x)", "float[2,3,4] x", "float[2,3,4] y").graph
    assert CudaTarget().supports(node).supported


def test_loading_without_pytorch_names_the_extra(tmp_path: Path) -> None:
    if find_spec("torch"):
        pytest.skip("torch is installed")
    with pytest.raises(ConfigError, match=r"pip install 'flagsplit\[cuda\]'"):
        load(stored(tmp_path))


def test_loading_without_a_gpu_says_what_is_missing(tmp_path: Path) -> None:
    needs_torch()
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"(built for the CPU|finds no CUDA GPU).*cuda\.device=cpu"):
        load(stored(tmp_path))


def test_ort_without_gpu_providers_is_refused(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a provider")
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        load(stored(tmp_path, engine="ort"))


def test_a_session_that_fell_back_is_refused() -> None:
    check_providers(["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="would run on the CPU"):
        check_providers(["CPUExecutionProvider"])


def test_a_file_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    needs_torch()
    artifact = stored(tmp_path, device="cpu")
    (file,) = (artifact.inside(name) for name in artifact.entries.values())
    file.write_bytes(file.read_bytes().replace(b"weights.bin", b"../passwd.x"))
    with pytest.raises(BundleError, match=r"refers to '\.\./passwd\.x'"):
        load(artifact)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    needs_torch()
    artifact = stored(tmp_path, device="cpu")
    (file,) = (artifact.inside(name) for name in artifact.entries.values())
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BundleError, match="get it again"):
        load(artifact)


_PRECISIONS = [("fp32", "fp32", 1e-6), ("fp16", "fp16", 2e-3), ("bf16", "fp32", 2e-2)]


@pytest.mark.parametrize(("precision", "io", "bound"), _PRECISIONS)
def test_precisions(tmp_path: Path, precision: str, io: str, bound: float) -> None:
    needs_torch()
    tensors = {"x": drawn(1, 3, 8, 8)}
    (made,) = ran(CONV.clone(), tmp_path, tensors, precision=precision, io=io).values()
    (wanted,) = expected(tmp_path, tensors).values()
    assert made.dtype == np.float32
    assert np.linalg.norm(made - wanted) <= bound * np.linalg.norm(wanted)


def test_large_masks_stay_finite_in_half_precision(tmp_path: Path) -> None:
    needs_torch()
    model = graph(
        "a = Sub (one, m) b = Mul (a, low) c = Add (x, b) d = Add (c, b) y = Softmax <axis = -1> (d)",
        "float[2,4] x, float[1,4] m",
        "float[2,4] y",
        {"one": np.array(1, np.float32), "low": np.array(-3.4e38, np.float32)},
    )
    tensors = {"x": drawn(2, 4), "m": np.array([[1, 1, 0, 0]], np.float32)}
    (made,) = ran(model, tmp_path, tensors, precision="fp16").values()
    np.testing.assert_allclose(made.sum(-1), 1, atol=1e-3)
    assert not made[:, 2:].any()


def test_sums_of_products_of_integers_stay_in_float32(tmp_path: Path) -> None:
    """They exceed what half precision holds, and their scales are below what it has digits for."""
    needs_torch()
    numbers = np.random.default_rng(0).integers(100, 127, (400, 8), dtype=np.int8)
    model = graph(
        "q = QuantizeLinear (x, small, zero) a = MatMulInteger (q, w) b = Cast <to = 1> (a) c = Mul (b, scale) "
        "y = Add (c, c)",
        "float[2,400] x",
        "float[2,8] y",
        {
            "w": numbers,
            "small": np.array(1e-2, np.float32),
            "zero": np.array(0, np.int8),
            "scale": np.array(3e-7, np.float32),
        },
    )
    tensors = {"x": drawn(2, 400) + 1}
    (made,) = ran(model, tmp_path, tensors, precision="fp16").values()
    (wanted,) = expected(tmp_path, tensors).values()
    np.testing.assert_allclose(made, wanted, rtol=2e-3)


def test_quantization_on_the_fly_is_refused() -> None:
    model = graph("y, s, z = DynamicQuantizeLinear (x)", "float[2,9] x", "uint8[2,9] y, float s, uint8 z")
    (node,) = model.graph
    assert "--float-products" in CudaTarget().supports(node).reason


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    needs_torch()
    with pytest.raises(InputError, match=r"expected 'x' as float32\[1, 3, 8, 8\], came float64\[1\]"):
        ran(CONV.clone(), tmp_path, {"x": np.zeros(1)})


def listed(folder: Path) -> tuple[StoredArtifact, str]:
    """The artifact of a convolution for batches of 1, 2 and 5."""
    model = graph("y = Conv (x, w)", "float[n,3,8,8] x", "float[n,40,6,6] y", {"w": drawn(40, 3, 3, 3)})
    flagir.save(model, folder)
    segment = segment_of(model, [node.name or "" for node in model.graph])
    choices = {"shapes": "enumerated", "device": "cpu", "precision": "fp32"}
    weights = folder / flagir.WEIGHTS_NAME
    options = CompileOptions(
        dims={"n": 2}, ranges={"n": (1, 5)}, listed={"n": (1, 2, 5)}, choices=choices, weights=weights
    )
    return CudaTarget().compile(model, [segment], options).store(folder / "artifact", weights), segment.id


def test_each_listed_size_has_a_program(tmp_path: Path) -> None:
    artifact, segment = listed(tmp_path)
    assert len(list(artifact.folder.glob(f"{segment}*.onnx"))) == 3


def test_listed_sizes_run_and_others_are_refused(tmp_path: Path) -> None:
    needs_torch()
    artifact, segment = listed(tmp_path)
    loaded = CudaTarget().load(artifact, segment, LoadOptions())
    for size in (5, 1, 2):
        tensors = {"x": drawn(size, 3, 8, 8)}
        made = np.asarray(loaded.run(tensors)["y"], np.float32)
        np.testing.assert_allclose(made, expected(tmp_path, tensors)["y"], atol=1e-5)
    with pytest.raises(InputError, match=r"came \[\[3, 3, 8, 8\]\]"):
        loaded.run({"x": drawn(3, 3, 8, 8)})
    loaded.close()


def test_programs_share_equal_constants() -> None:
    needs_torch()
    modules = [
        to_module(build_program(CONV.clone(), precision), ["float32"], "cpu") for precision in ("", "", "float16")
    ]
    first, second, half = (next(module.buffers()) for module in modules)
    assert first.data_ptr() == second.data_ptr() != half.data_ptr()


@pytest.mark.slow
def test_a_real_network(tmp_path: Path) -> None:
    needs_torch()
    model = flagir.read_model(pull("ppocr-cls"))
    flagir.canonicalize(model)
    skeleton = Skeleton(model)
    dims = flagir.nominal_dims(skeleton, flagir.dims_of_shapes(skeleton, {"x": (1, 3, 48, 96)}))
    tensors = {"x": drawn(1, 3, 48, 96)}
    (made,) = ran(specialize(model, dims), tmp_path, tensors).values()
    (wanted,) = expected(tmp_path, tensors).values()
    np.testing.assert_allclose(made, wanted, atol=1e-4)
