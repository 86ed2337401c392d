"""The providers of ONNX Runtime that the `ort` target can be built for: what they are called, given and need.

All are asked for products in 32 bits, as far as they can be asked: by default CUDA's and TensorRT's convolutions and
matrix products read TF32, with 10 bits of mantissa, and OpenVINO computes in what its device is fastest at.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flagsplit.errors import ConfigError


@dataclass(frozen=True)
class Provider:
    """A way to run segments other than on the CPU.

    Attributes:
        sessions: options by ONNX Runtime's name of the provider, the preferred first; the rest take what it leaves.
        precision: what it computes in, by the names of an artifact's precision.
        advice: what it needs on the host.
        threads: its option for how many threads of the CPU it may use; "" if it uses none.
    """

    sessions: Mapping[str, Mapping[str, str]]
    precision: str
    advice: str
    threads: str = ""

    def asked(self, threads: int) -> dict[str, dict[str, str]]:
        """Options by provider for a host that grants so many threads; 0 lets the engine choose."""
        limit = {self.threads: str(threads)} if self.threads and threads else {}
        return {name: {**given, **limit} for name, given in self.sessions.items()}


_CUDA = {"CUDAExecutionProvider": {"use_tf32": "0"}}
_ELSE = "or build again with ort.provider=cpu"
PROVIDERS: Mapping[str, Provider] = {
    "cuda": Provider(_CUDA, "fp32", f"install onnxruntime-gpu with the CUDA and cuDNN that it names, {_ELSE}"),
    "tensorrt": Provider(
        {"TensorrtExecutionProvider": {}, **_CUDA},
        "tf32",
        f"install onnxruntime-gpu (on a Jetson NVIDIA's build of it) and the TensorRT that it names, {_ELSE}",
    ),
    "openvino": Provider(
        {"OpenVINOExecutionProvider": {"precision": "FP32"}},
        "fp32",
        f"install onnxruntime-openvino in an environment without onnxruntime, {_ELSE}",
        "num_of_threads",
    ),
}
"""By the name that is chosen; "cpu" needs nothing."""

CPU = "cpu"
FORM = f"{CPU} (the default), {', '.join(PROVIDERS)}; or DEVICE:PROVIDER,... for tiers of these devices"


def provider_for(chosen: str, device: str) -> str:
    """The provider of a tier.

    Args:
        chosen: the choice: a provider for all tiers, or `DEVICE:PROVIDER` separated by commas, the CPU elsewhere.
        device: catalogue name of what stands on the tier.

    Raises:
        ConfigError: a provider is none that there is.
    """
    found = CPU
    for each in chosen.split(","):
        where, colon, name = each.strip().rpartition(":")
        if name != CPU and name not in PROVIDERS:
            raise ConfigError(f"ort.provider expects {FORM}; came {each.strip()!r}")
        if not colon or where == device:
            found = name
    return found


def devices_named(chosen: str) -> set[str]:
    """The devices that a choice says a provider for."""
    return {each.strip().rpartition(":")[0] for each in chosen.split(",")} - {""}


def named_provider(name: str) -> Provider | None:
    """What an artifact says; None for the CPU.

    Raises:
        ConfigError: it is none that this flagsplit has.
    """
    if name == CPU:
        return None
    if name not in PROVIDERS:
        raise ConfigError(f"the artifact is for the provider {name!r}; this flagsplit has {', '.join(PROVIDERS)}")
    return PROVIDERS[name]
