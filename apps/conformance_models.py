"""The zoo's models as a corpus for `flagsplit.targets.conformance`: which, and what they are asked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from flagsplit.apps import zoo
from flagsplit.errors import FlagsplitError
from flagsplit.targets.conformance import CorpusModel
from flagsplit.targets.interface import Array

_SEED = 6


@dataclass(frozen=True)
class _Asked:
    """What a model is asked.

    Attributes:
        shapes: of the inputs that get normal numbers.
        constants: shape, number and type of those that get one number everywhere.
        pages: shapes of those that get strokes on white, as print has: readers answer noise with next to nothing,
            and an answer next to nothing is all rounding.
        seed_weights: see `CorpusModel`.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, tuple[tuple[int, ...], int, str]] = field(default_factory=dict)
    pages: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    seed_weights: bool = False

    def inputs(self) -> dict[str, Array]:
        random = np.random.default_rng(_SEED)
        drawn = {name: random.standard_normal(shape).astype(np.float32) for name, shape in self.shapes.items()}
        same = {name: np.full(shape, value, dtype) for name, (shape, value, dtype) in self.constants.items()}
        return {**drawn, **same, **{name: _page(shape, random) for name, shape in self.pages.items()}}


def _page(shape: tuple[int, int, int, int], random: np.random.Generator) -> Array:
    """White with lines of upright and level strokes, in [-1, 1]."""
    height, width = shape[2:]
    page = np.ones((height, width), np.float32)
    for top in range(12, height - 20, 28):
        for left in range(12, width - 12, 10):
            if random.random() < 0.15:
                continue  # between words
            for _ in range(3):
                down, right = int(random.integers(0, 14)), int(random.integers(0, 6))
                if random.random() < 0.5:
                    page[top : top + 16, left + right : left + right + 2] = -1
                else:
                    page[top + down : top + down + 2, left : left + 8] = -1
    return np.ascontiguousarray(np.broadcast_to(page, shape))


def _light(name: str) -> _Asked:
    return _Asked({name: (1, 3, 224, 224)}, seed_weights=True)


_MODELS = {
    "ppocr-cls": _Asked(pages={"x": (1, 3, 48, 192)}),
    "ppocr-det": _Asked(pages={"x": (1, 3, 320, 320)}),
    "ppocr-rec": _Asked(pages={"x": (1, 3, 48, 320)}),
    "silero-vad": _Asked({"input": (1, 576), "state": (2, 1, 128)}, {"sr": ((), 16000, "int64")}),
    "moonshine-encoder": _Asked({"input_values": (1, 32000)}, {"attention_mask": ((1, 32000), 1, "int64")}),
    "light-densenet121": _light("data_0"),
    "light-inception-v1": _light("data_0"),
    "light-inception-v2": _light("data_0"),
    "light-resnet50": _light("gpu_0/data_0"),
    "light-shufflenet": _light("gpu_0/data_0"),
    "light-squeezenet": _light("data_0"),
}
"""The light networks' own weights are all alike, so they get others."""

NAMES = tuple(_MODELS)
"""The zoo's names of the models."""


def zoo_models(
    names: Iterable[str] = NAMES, progress: Callable[[str], None] = lambda _: None, *, quantize: bool = False
) -> list[CorpusModel]:
    """Models of the zoo with inputs; one that cannot be fetched says why instead.

    Args:
        names: some of `NAMES`.
        progress: told which model is looked for.
        quantize: whether as int8 models.
    """
    return [_model(name, progress, quantize) for name in names]


def _model(name: str, progress: Callable[[str], None], quantize: bool) -> CorpusModel:
    progress(name)
    try:
        path = zoo.pull(name)
    except FlagsplitError as error:
        return CorpusModel(name, None, missing=str(error))
    asked = _MODELS[name]
    return CorpusModel(name, path, asked.inputs(), seed_weights=asked.seed_weights, quantize=quantize)
