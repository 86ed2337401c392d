"""What int8 costs in accuracy: printed text read, found and turned by int8 models and by floating-point ones.

Samples are real: lines and words of two scanned pages, and windows of them. Every second one calibrates, the others
are compared. `MODEL_task` is what the model is for, the same in int8 as in floating point, in points of 100 (the gate
is at 99): ppocr-rec: characters read alike (Levenshtein); ppocr-cls: lines found upright or upside down as they are,
less what floating point finds; ppocr-det: overlap of what is taken for text. `_cosine` is that of all samples at the
gate, `_flops_int8` the share of operations in int8, `_all_task` and `_all_cosine` those of a model that is int8
throughout, without the gate. A model that int8 ruins at every node has `_refused` 1 and no other figures.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.ocr import cut_line, find_lines, first_page, prepare, second_page
from flagsplit.apps.ocr.page import load_gray
from flagsplit.apps.ocr.recogniser import characters_of, decode, resample
from flagsplit.apps.quantizing import masks_alike, quantize_model
from flagsplit.apps.zoo import pull
from flagsplit.errors import ModelError
from flagsplit.flagir.quantization import OBSERVERS, ObserverName, QuantizeOptions
from flagsplit.targets.interface import Array
from flagsplit.targets.model_runner import run_model

QUICK = ("ppocr-cls",)
MODELS = ("ppocr-rec", "ppocr-det", "ppocr-cls")
DET_SIZE = 320

Score = Callable[[Sequence[Mapping[str, Array]], Sequence[Mapping[str, Array]]], float]
"""Points of 100, of the answers of int8 against those of floating point."""


def crops() -> list[Array]:
    """Lines of print as gray levels, then the words that they are cut into: over fifty."""
    lines = [cut_line(page, box) for page in (first_page(), second_page()) for box in find_lines(page)]
    words = []
    for line in lines:
        count = max(1, round(line.shape[1] / (5 * line.shape[0])))
        words += np.array_split(line, count, axis=1)
    return [*lines, *words]


def windows() -> list[Array]:
    """Parts of the pages and of a photograph of text, of several sizes, whole and cut: over fifty."""
    found = []
    for page in (first_page(), second_page(), load_gray(pull("text.png"))):
        for parts in (1, 2, 3, 4):
            for row in np.array_split(page, parts, axis=0):
                found += np.array_split(row, parts, axis=1)
    return found


def samples_of(name: str) -> tuple[list[dict[str, Array]], list[int]]:
    """Inputs of a model, and for ppocr-cls which class is right."""
    if name == "ppocr-rec":
        return [{"x": prepare([crop], width_px=320)} for crop in crops()], []
    if name == "ppocr-cls":
        upright = [(prepare([crop], width_px=192), 0) for crop in crops()]
        both = [each for x, _ in upright for each in ((x, 0), (np.ascontiguousarray(x[..., ::-1, ::-1]), 1))]
        order = np.random.default_rng(0).permutation(len(both))
        return [{"x": both[at][0]} for at in order], [both[at][1] for at in order]
    mean, deviation = (np.array(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pictures = [(resample(part, DET_SIZE, DET_SIZE) / 255 - mean) / deviation for part in windows()]
    return [{"x": picture[None].astype(np.float32)} for picture in pictures], []


def score_of(name: str, right: Sequence[int]) -> Score:
    """How a model's answers are judged."""
    if name == "ppocr-rec":
        return read_alike
    return found_alike if name == "ppocr-det" else lambda wanted, came: turned_right(wanted, came, right)


def read_alike(wanted: Sequence[Mapping[str, Array]], came: Sequence[Mapping[str, Array]]) -> float:
    """Characters that int8 reads as floating point does, of those that floating point reads."""
    characters = characters_of(pull("ppocr-rec"))
    texts = [[decode(_only(answer), characters)[0].text for answer in answers] for answers in (wanted, came)]
    edits = sum(distance(a, b) for a, b in zip(*texts, strict=True))
    return 100 * (1 - edits / max(sum(map(len, texts[0])), 1))


def found_alike(wanted: Sequence[Mapping[str, Array]], came: Sequence[Mapping[str, Array]]) -> float:
    """Pixels that both take for text, of those that either does."""
    return 100 * masks_alike(list(zip(wanted, came, strict=True)))


def turned_right(
    wanted: Sequence[Mapping[str, Array]], came: Sequence[Mapping[str, Array]], right: Sequence[int]
) -> float:
    """100 less the points of accuracy that int8 loses."""
    lost = [
        np.mean([int(_only(answer).argmax()) == label for answer, label in zip(answers, right, strict=True)])
        for answers in (wanted, came)
    ]
    return float(100 - 100 * max(lost[0] - lost[1], 0))


def distance(a: str, b: str) -> int:
    """Levenshtein's: characters to put in, take out or change."""
    row = list(range(len(b) + 1))
    for at, letter in enumerate(a):
        before, row = row, [at + 1]
        for to, other in enumerate(b):
            row.append(min(before[to] + (letter != other), before[to + 1] + 1, row[to] + 1))
    return row[-1]


def _only(answer: Mapping[str, Array]) -> Array:
    (array,) = answer.values()
    return array


def figures_of(name: str, observer: ObserverName, say: Callable[[str], None]) -> dict[str, float]:
    """All figures of a model."""
    model = _canonical(name)
    samples, right = samples_of(name)
    checks = samples[1::2]
    score = score_of(name, right[1::2])
    wanted = list(run_model(model, checks))
    found: dict[str, float] = {"samples": len(samples)}

    def judged(pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> float:
        return score([expected for expected, _ in pairs], [answer for _, answer in pairs]) / 100

    for prefix, least, task in (("all_", -1.0, 0.0), ("", 0.999, 0.99)):
        started = time.perf_counter()
        try:
            options = QuantizeOptions(observer, min_cosine=least, task=judged, min_task=task)
            made = quantize_model(model, samples, options)
        except ModelError as error:
            say(f"{name}: {error}")
            found |= {"refused": 1.0}
            continue
        came = list(run_model(made.model, checks))
        found |= {
            f"{prefix}task": score(wanted, came),
            f"{prefix}cosine": made.cosine,
            f"{prefix}flops_int8": made.flops_int8,
            f"{prefix}seconds": time.perf_counter() - started,
        }
        say(f"{name} {prefix or 'gated '}: { ({key: round(value, 4) for key, value in found.items()}) }")
    return found


def _canonical(name: str) -> ir.Model:
    model = flagir.read_model(pull(name))
    flagir.canonicalize(model)
    return model


def main() -> None:
    """Print a line a model, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be repeated")
    parser.add_argument("--observer", choices=OBSERVERS, default="minmax")
    arguments = parser.parse_args()
    names = arguments.model or (QUICK if arguments.quick else MODELS)

    def say(line: str) -> None:
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    figures: dict[str, Any] = {}
    for name in names:
        figures |= {f"{name}_{key}": value for key, value in figures_of(name, arguments.observer, say).items()}
    conditions = {"host": platform.processor() or platform.machine(), "observer": arguments.observer}
    if arguments.json:
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))


if __name__ == "__main__":
    main()
