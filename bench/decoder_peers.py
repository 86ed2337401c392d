"""What `decoder.py` measures against: Moonshine's published int8 decoder; and codecs, there and back."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.flagir.codecs.functions import DOMAIN, DOMAIN_VERSION, function
from flagsplit.flagir.opset import OPSET
from flagsplit.targets.interface import Array, Executable
from flagsplit.targets.onnx_engine import session_settings

LAYERS, HEADS, HEAD_SIZE = 6, 8, 36
FIRST, LAST = 1, 2
TOKENS_PER_S = 6.5
_PARTS = [
    f"{layer}.{side}.{part}" for layer in range(LAYERS) for side in ("decoder", "encoder") for part in ("key", "value")
]


class Int8Decoder:
    """The two published graphs, run token by token as its authors do."""

    def __init__(self) -> None:
        settings = session_settings(None, "fast", 0)
        self._encoder, self._decoder = (
            ort.InferenceSession(str(zoo.pull(f"moonshine-{part}")), settings) for part in ("encoder", "decoder")
        )
        self._outputs = [value.name for value in self._decoder.get_outputs()]

    def rate(self, sounds: Sequence[tuple[NDArray[np.float32], float]]) -> float:
        """Tokens per second of the decoder alone, the stop tokens counted; sounds are samples and their seconds."""
        count, took_s = 0, 0.0
        for samples, seconds in sounds:
            mask = np.ones((1, len(samples)), np.int64)
            (hidden,) = self._encoder.run(None, {"input_values": samples[None], "attention_mask": mask})
            began = time.perf_counter()
            count += len(self.tokens(hidden, mask, int(seconds * TOKENS_PER_S))) + 1
            took_s += time.perf_counter() - began
        return count / took_s

    def tokens(self, hidden: Array, mask: Array, most: int) -> list[int]:
        """The tokens of one piece."""
        found = list[int]()
        caches: dict[str, Array] = {name: np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32) for name in _PARTS}
        token, is_later = FIRST, False
        while len(found) < most:
            inputs = {
                "input_ids": np.array([[token]], np.int64),
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": mask,
                "use_cache_branch": np.array([is_later]),
                **{f"past_key_values.{name}": array for name, array in caches.items()},
            }
            result = dict(zip(self._outputs, self._decoder.run(self._outputs, inputs), strict=True))
            for name in _PARTS:
                if not is_later or ".decoder." in name:
                    caches[name] = result[f"present.{name}"]
            token, is_later = int(result["logits"][0, -1].argmax()), True
            if token == LAST:
                break
            found.append(token)
        return found


class Coded:
    """An encoder whose hidden states go through something."""

    def __init__(self, encode: Executable, change: Callable[[Array], Array]) -> None:
        self._encode = encode
        self._change = change
        self.inputs, self.outputs = encode.inputs, encode.outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The encoder's answer, changed."""
        return {name: self._change(array) for name, array in self._encode.run(tensors).items()}

    def close(self) -> None:
        """Free the encoder."""
        self._encode.close()


def round_trip(codec: str, array: Array) -> Array:
    """Through a codec of eight bits and back."""
    axis = array.ndim - 1 if codec == "u8_per_channel" else 0
    return np.asarray(_codec(axis).run(["y"], {"x": array})[0])


@functools.cache
def _codec(axis: int) -> ort.InferenceSession:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["a", "b", "c"]))
    encode = ir.Node(DOMAIN, "EncodeU8", [x], [ir.AttrInt64("axis", axis)], num_outputs=3)
    decode = ir.Node(DOMAIN, "DecodeU8", encode.outputs, [ir.AttrInt64("axis", axis)], num_outputs=1)
    y = decode.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["a", "b", "c"])
    graph = ir.Graph([x], [y], nodes=[encode, decode], opset_imports={"": OPSET, DOMAIN: DOMAIN_VERSION}, name="codec")
    functions = [function("EncodeU8"), function("DecodeU8")]
    model = ir.Model(graph, ir_version=11, functions=functions)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString())
