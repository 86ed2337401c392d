"""What Coral's compiler would make of whole int8 networks, by the table of `flagsplit.targets.edge.edgetpu`.

    python bench/edgetpu.py [--json] [MODEL ...]

Each model of the zoo is quantized on a few made-up samples, without a gate: what is asked is what is mapped, how much
memory holds and how much streams, not how good the answers are. All times are modelled; nothing runs on an Edge TPU.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.quantizing import run_model
from flagsplit.apps.zoo import pull
from flagsplit.flagir.quantization import QuantizeOptions, quantize
from flagsplit.flagir.segments import segment_of
from flagsplit.flagir.specialize import specialize
from flagsplit.targets.chip_parts import fixed_sizes, split_segments
from flagsplit.targets.edge.edgetpu.ends import channels_last_at_ends
from flagsplit.targets.edge.edgetpu.facts import SRAM_BYTES
from flagsplit.targets.edge.edgetpu.forms import lowered
from flagsplit.targets.edge.edgetpu.mapping import mapping_of, parameter_bytes
from flagsplit.targets.edge.edgetpu.pipeline import divided
from flagsplit.targets.edge.edgetpu.verdicts import verdict_of
from flagsplit.targets.interface import Array

MODELS = (
    "ppocr-cls ppocr-det ppocr-rec light-alexnet light-densenet121 light-inception-v1 light-inception-v2 "
    "light-resnet50 light-shufflenet light-squeezenet light-vgg19 light-zfnet512"
).split()
SHAPES = {"ppocr-det": (1, 3, 320, 320), "ppocr-rec": (1, 3, 48, 320), "ppocr-cls": (1, 3, 48, 192)}
CHIPS = (1, 2, 4)
"""How many Edge TPUs share a network."""


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [report(name) for name in given.models]
    if given.json:
        print(json.dumps({"basis": "modelled", "sram_bytes": SRAM_BYTES, "models": rows}, indent=1))
        return
    print("| model | nodes taken | mapped | stopped by | parameters MiB | streamed MiB | ms on 1, 2, 4 chips |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(_line(row))


def report(name: str) -> dict[str, Any]:
    """What becomes of a model of the zoo."""
    model, dims, shape = _model(name)
    _seed_weights(model, name)
    samples = [_sample(model, shape, name, seed) for seed in range(3)]
    int8 = quantize(model, samples, run_model, QuantizeOptions(min_cosine=-1.0)).model
    said = [verdict_of(node) for node in specialize(int8, dims).graph]
    segment = segment_of(int8, [node.name or "" for node in int8.graph])
    (split,) = split_segments(int8, [segment], fixed_sizes(int8, dims, [segment]), quantized_ends=True)
    chip = channels_last_at_ends(split).chip
    assert chip is not None
    program = lowered(chip)
    mapping = mapping_of(program)
    whole = mapping.stopped is None
    return {
        "model": name,
        "nodes": len(said),
        "taken": sum(each.supported for each in said),
        "operators": mapping.operators,
        "mapped": mapping.mapped,
        "stopped_by": "" if mapping.stopped is None else mapping.stopped.refusal.reason,
        "parameter_bytes": parameter_bytes(program.operators),
        "mapped_parameter_bytes": mapping.parameter_bytes,
        "streamed_bytes": mapping.streamed_bytes,
        "slowest_part_ms": {
            str(chips): 1e3 * max(mapping_of(part).total for part in divided(program, chips)) for chips in CHIPS
        }
        if whole
        else {"1": 1e3 * mapping.total},
    }


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{each:.2f}" for each in row["slowest_part_ms"].values())
    mebibytes = [f"{row[name] / (1 << 20):.2f}" for name in ("parameter_bytes", "streamed_bytes")]
    mapped = f"{row['mapped']} of {row['operators']}"
    taken = f"{row['taken']} of {row['nodes']}"
    return f"| {row['model']} | {taken} | {mapped} | {row['stopped_by']} | {' | '.join(mebibytes)} | {times} |"


def _model(name: str) -> tuple[ir.Model, dict[str, int], Sequence[int]]:
    model = flagir.read_model(pull(name))
    flagir.canonicalize(model)
    (taken,) = model.graph.inputs
    assert taken.shape is not None
    shape = SHAPES.get(name, tuple(1 if not isinstance(dim, int) else dim for dim in taken.shape))
    dims = {str(dim.value): size for dim, size in zip(taken.shape, shape, strict=True) if not isinstance(dim, int)}
    return model, dims, shape


def _seed_weights(model: ir.Model, name: str) -> None:
    """The light networks' own weights are all alike, so they get others; the variance of activations is kept."""
    for at, value in enumerate(model.graph.initializers.values() if name.startswith("light-") else ()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 1:
            shape = [size for size in tensor.shape if isinstance(size, int)]
            drawn = np.random.default_rng(at).standard_normal(shape, np.float32)
            value.const_value = ir.Tensor(drawn * np.float32(np.sqrt(2 / np.prod(shape[1:]))), name=value.name)


def _sample(model: ir.Model, shape: Sequence[int], name: str, seed: int) -> dict[str, Array]:
    noise = np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)
    return {model.graph.inputs[0].name or "": np.tanh(noise) if name.startswith("ppocr") else noise}


if __name__ == "__main__":
    main()
