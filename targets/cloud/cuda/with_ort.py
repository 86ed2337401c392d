"""A part run by ONNX Runtime's TensorRT or CUDA provider. It lists providers that then fail to load, and falls back to
the CPU without a word: what counts is what a session says that it got.
"""

from pathlib import Path
from typing import Any

from flagsplit.errors import BundleError, ConfigError
from flagsplit.targets.interface import Executable
from flagsplit.targets.onnx_engine import OrtExecutable, refuse_fallback, session_settings

GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def open_on_gpu(file: Path, weights: Path, *, half: bool) -> Executable:
    """Open a part.

    Args:
        file: its ONNX file.
        weights: the shared weights file.
        half: whether TensorRT may compute in half precision; the CUDA provider computes in the model's own types.

    Raises:
        BundleError: the engine cannot load it.
        ConfigError: there is no provider for GPUs, or the engine fell back to the CPU.
    """
    import onnxruntime as ort

    listed = [name for name in GPU_PROVIDERS if name in ort.get_available_providers()]
    if not listed:
        raise ConfigError(
            f"engine=ort of the cuda target needs ONNX Runtime with {' or '.join(GPU_PROVIDERS)}; onnxruntime "
            f"{ort.__version__} has {', '.join(ort.get_available_providers())}; install onnxruntime-gpu"
        )
    asked: list[Any] = [(name, {"trt_fp16_enable": half}) if name.startswith("Tensorrt") else name for name in listed]
    try:
        settings = session_settings(weights, "fast", 0)
        session = ort.InferenceSession(file.read_bytes(), settings, providers=asked, enable_fallback=0)
    except Exception as error:
        short = " ".join(str(error).split())[:300]
        raise BundleError(f"ONNX Runtime cannot load {file.name} on the GPU: {short}") from error
    check_providers(session.get_providers())
    return OrtExecutable(session)


def check_providers(got: list[str]) -> None:
    """Refuse a session that no GPU runs.

    Args:
        got: what `session.get_providers()` says.

    Raises:
        ConfigError: it fell back to the CPU.
    """
    refuse_fallback(got, GPU_PROVIDERS, "install the CUDA, cuDNN and TensorRT that it names")
