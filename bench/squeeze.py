"""What lossless squeezing and the look at encoded tensors cost and bring, on activations of a network that reads text.

    python bench/squeeze.py [--json] [--quick]

The recognizer of the zoo reads a line of text; values all through it are encoded by each codec with ONNX Runtime, cut
into chunks and squeezed. Figures by codec and kind: `ratio`, `squeeze_mb_s`, `unsqueeze_mb_s` (of what is squeezed),
summed over all values. `worst_over_plain` and `gain_MBITS` are modelled from those times: a policy that sees each value
again and again on a link of so many Mbit/s, against sending plain; `best_gain_MBITS` is by the best kind in hindsight.
`idle_call_us` is a decision where nothing is to be decided. `check_gb_s` is `check_encoded` on half precision, and
`count_share` what counting NaN adds to an encode of 8 bits per channel.
"""

import argparse
import functools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from PIL import Image

from flagsplit.apps import zoo
from flagsplit.flagir.codecs.functions import COUNT, function
from flagsplit.flagir.opset import OPSET
from flagsplit.runtime.codec_check import check_encoded
from flagsplit.transport.squeeze import KINDS, host_speeds, squeeze, unsqueeze
from flagsplit.transport.squeeze_policy import SqueezePolicy
from flagsplit.transport.tensors import DEFAULT_CHUNK_BYTES

MBITS = (2, 5, 20, 50, 100, 200, 300, 500, 1000, 2000)
CODECS = ("f32", "fp16", "u8_per_channel", "u4_per_channel")
_OPS = {
    "fp16": ("EncodeFp16", ""),
    "u8_per_channel": ("EncodeU8", "scale, zero"),
    "u4_per_channel": ("EncodeU4", "scale, zero, form"),
}
_REQUESTS = 100

Array = np.ndarray[Any, Any]


def best_s(work: Callable[[], object], rounds: int) -> float:
    """The least of several times."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def activations(count: int) -> list[Array]:
    """Values of four dimensions, evenly through the network, for a picture of a line of text."""
    model = onnx.shape_inference.infer_shapes(onnx.load(zoo.pull("ppocr-rec")))
    known = {info.name for info in model.graph.value_info if len(info.type.tensor_type.shape.dim) == 4}
    names = [name for node in model.graph.node for name in node.output if name in known and node.op_type != "Constant"]
    names = names[:: max(1, len(names) // count)]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    picture = Image.open(zoo.pull("text.png")).convert("L")
    gray = np.asarray(picture.resize((picture.width * 48 // picture.height, 48)), np.float32) / 127.5 - 1
    session = _session(model)
    made = session.run(names, {session.get_inputs()[0].name: np.broadcast_to(gray, (1, 3, *gray.shape))})
    return [np.ascontiguousarray(value) for value in made if value.dtype == np.float32 and value.nbytes >= 16_384]


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def encoder(codec: str, counts: bool = False) -> ort.InferenceSession:
    """A session that encodes a value of four dimensions, and counts in it if asked to."""
    op, rest = _OPS[codec]
    axis = " <axis = 2>" if rest else ""
    more = f" count = flagir.{COUNT} (x)" if counts else ""
    outputs = [name for name in ("payload", *rest.split(", "), "count" if counts else "") if name]
    text = f"""<ir_version: 10, opset_import: ["" : {OPSET}, "flagir" : 1]>
        g (float[a, b, c, d] x) => ({", ".join(f"float {name}" for name in outputs)}) {{
            payload{", " + rest if rest else ""} = flagir.{op}{axis} (x){more} }}"""
    model = onnx.parser.parse_model(text)
    for info in model.graph.output:
        info.ClearField("type")
    model.functions.extend(ir.to_proto(function(name)) for name in (op, *((COUNT,) if counts else ())))
    return _session(model)


def encode(value: Array, codec: str) -> Array:
    """The payload of a value."""
    return value if codec == "f32" else np.asarray(encoder(codec).run(["payload"], {"x": value})[0])


def chunks(payload: Array) -> list[memoryview]:
    """As they travel."""
    data = payload.reshape(-1).view(np.uint8).data
    return [data[at : at + DEFAULT_CHUNK_BYTES] for at in range(0, len(data), DEFAULT_CHUNK_BYTES)]


class Squeezed:
    """One payload by one kind: bytes, and the seconds that it takes here."""

    def __init__(self, parts: Sequence[memoryview], kind: str, rounds: int) -> None:
        small = [squeeze(part, kind) for part in parts]
        shrunk = [(less, len(part)) for less, part in zip(small, parts, strict=True) if len(less) < len(part)]
        self.sent_bytes = sum(min(len(less), len(part)) for less, part in zip(small, parts, strict=True))
        self.squeeze_s = best_s(lambda: [squeeze(part, kind) for part in parts], rounds)
        self.unsqueeze_s = best_s(lambda: [unsqueeze(less, kind, size) for less, size in shrunk], rounds)

    def seconds(self, goodput_bytes_s: float) -> float:
        """With the link."""
        return self.sent_bytes / goodput_bytes_s + self.squeeze_s + self.unsqueeze_s


def follow_policy(payload: Array, made: Mapping[str, Squeezed], mbits: float) -> tuple[float, float, float]:
    """Seconds of requests under the policy, plain, and with what is best in hindsight."""
    goodput, policy = mbits * 125_000, SqueezePolicy()
    data = payload.reshape(-1).view(np.uint8).data
    plain_s = len(data) / goodput
    spent_s = 0.0
    for _ in range(_REQUESTS):
        started = time.thread_time()  # what others do on this host meanwhile is not the policy's
        kind = policy.choose("link", "value", data, goodput, KINDS)
        spent_s += time.thread_time() - started
        spent_s += made[kind].seconds(goodput) if kind else plain_s
        if kind:
            policy.sent("link", "value", kind, len(data), made[kind].sent_bytes)
    best = min(plain_s, *(each.seconds(goodput) for each in made.values()))
    return spent_s, plain_s * _REQUESTS, best * _REQUESTS


def measure(values: Sequence[Array], rounds: int) -> dict[str, float]:
    """All figures."""
    figures: dict[str, float] = {}
    worst = 0.0
    for codec in CODECS:
        payloads = [encode(value, codec) for value in values]
        parts = [chunks(payload) for payload in payloads]
        made = [{kind: Squeezed(each, kind, rounds) for kind in KINDS} for each in parts]
        raw = sum(payload.nbytes for payload in payloads)
        for kind in KINDS:
            own = [each[kind] for each in made]
            figures[f"{codec}_{kind}_ratio"] = raw / sum(each.sent_bytes for each in own)
            figures[f"{codec}_{kind}_squeeze_mb_s"] = raw / sum(each.squeeze_s for each in own) / 1e6
            figures[f"{codec}_{kind}_unsqueeze_mb_s"] = raw / sum(each.unsqueeze_s for each in own) / 1e6
        for mbits in MBITS:
            spent, plain, best = (
                sum(each)
                for each in zip(*(follow_policy(p, m, mbits) for p, m in zip(payloads, made, strict=True)), strict=True)
            )
            worst = max(worst, spent / plain)
            figures[f"{codec}_gain_{mbits}"] = plain / spent
            figures[f"{codec}_best_gain_{mbits}"] = plain / best
    policy, small = SqueezePolicy(), memoryview(bytes(100))
    idle_s = best_s(lambda: policy.choose("link", "value", small, 1e9, KINDS), 1000)
    return {**figures, "worst_over_plain": worst, "idle_call_us": idle_s * 1e6, **checks(values, rounds)}


def checks(values: Sequence[Array], rounds: int) -> dict[str, float]:
    """What looking at encoded tensors costs."""
    half = np.zeros((8 << 20,), np.float16)
    half_s = best_s(lambda: check_encoded({"v.fp16.payload": half}), 5 * rounds)
    alone, counted = encoder("u8_per_channel"), encoder("u8_per_channel", counts=True)
    took_s = [0.0, 0.0]
    for value in values:
        best = [float("inf")] * 2
        for _ in range(20 * rounds):  # in turns, so that both see the same neighbors
            for at, session in enumerate((alone, counted)):
                best[at] = min(best[at], best_s(lambda s=session, v=value: s.run(None, {"x": v}), 1))  # type: ignore[misc]
        took_s = [sum(pair) for pair in zip(took_s, best, strict=True)]
    return {"check_gb_s": half.nbytes / half_s / 1e9, "count_share": took_s[1] / took_s[0] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer values and rounds, under a minute")
    options = parser.parse_args()
    values = activations(6 if options.quick else 25)
    speeds = {
        kind: [speed.squeeze_bytes_s / 1e6, speed.unsqueeze_bytes_s / 1e6] for kind, speed in host_speeds().items()
    }
    figures = measure(values, 3 if options.quick else 10)
    conditions = {
        "machine": platform.platform(),
        "model": "ppocr-rec",
        "values": len(values),
        "zeros": float(np.mean([np.mean(value == 0) for value in values])),
        "host_speeds_mb_s": speeds,
        "requests": _REQUESTS,
    }
    if options.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured, links modelled"}))
        return
    print(conditions)
    for name, figure in figures.items():
        print(f"{name:36} {figure:10.3f}")


if __name__ == "__main__":
    main()
