"""Samples to calibrate on: an `.npz` file, a folder of them, of pictures or of recordings, or an entry of the zoo.

A picture is scaled to the input's height and width and to -1..1, as a whole and in parts; a recording is cut into
pieces of the input's length. Where a network wants its data prepared otherwise, give `.npz` files of what it gets.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flagsplit.apps import zoo
from flagsplit.apps.input_files import read_arrays
from flagsplit.apps.ocr.page import load_gray
from flagsplit.apps.ocr.recogniser import resample
from flagsplit.apps.samples import read_recording
from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.manifest import Tensor
from flagsplit.targets.interface import Array

ZOO_PREFIX = "zoo:"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
RECORDINGS = (".wav",)
MOST_SAMPLES = 512
"""More do not make ranges better, and each is held in memory."""

_PARTS = ((1, 1), (2, 2), (3, 3))
"""Rows and columns that a picture is cut into."""
_PIECES = 16


def calibration_samples(
    declared: Sequence[Tensor], dims: Mapping[str, int], sources: Sequence[str]
) -> list[dict[str, Array]]:
    """Inputs of a model, one set for each sample.

    Args:
        declared: the model's inputs.
        dims: nominal sizes, which pictures and recordings get.
        sources: `FILE.npz`, a folder, or `zoo:NAME`.

    Raises:
        ConfigError: a source is not there, holds nothing to use, or what reads it is not installed.
        InputError: a file does not fit the model.
        PeerError: an entry of the zoo cannot be fetched.
    """
    found: list[dict[str, Array]] = []
    for source in sources:
        before = len(found)
        for path in _files(source):
            found.extend(_samples(declared, dims, path))
            if len(found) > MOST_SAMPLES:
                raise ConfigError(f"expected at most {MOST_SAMPLES} samples, {source} has more; give fewer")
        if len(found) == before:
            raise ConfigError(f"expected samples in {source}, came none; {_usable()}")
    return found


def _usable() -> str:
    return f"it takes .npz files, pictures ({', '.join(PICTURES)}) and recordings ({', '.join(RECORDINGS)})"


def _files(source: str) -> list[Path]:
    if source.startswith(ZOO_PREFIX):
        name = source.removeprefix(ZOO_PREFIX)
        usable = [entry.name for entry in zoo.entries() if entry.kind in ("image", "audio")]
        if name not in usable:
            raise ConfigError(f"expected a picture or a recording of the zoo ({', '.join(usable)}), came {name!r}")
        return [zoo.pull(name)]
    path = Path(source)
    if path.is_dir():
        wanted = (".npz", *PICTURES, *RECORDINGS)
        return sorted(each for each in path.iterdir() if each.suffix.lower() in wanted and each.is_file())
    if not path.is_file():
        raise ConfigError(f"expected a folder, a file or {ZOO_PREFIX}NAME to calibrate on, {source} is none")
    return [path]


def _samples(declared: Sequence[Tensor], dims: Mapping[str, int], path: Path) -> Iterator[dict[str, Array]]:
    kind = path.suffix.lower()
    if kind == ".npz":
        yield read_arrays(declared, {}, {}, path)
        return
    if kind not in PICTURES + RECORDINGS:
        raise ConfigError(f"cannot calibrate on {path}; {_usable()}")
    data, shape = _data_input(declared, dims, path)
    others = {each.name: np.ones(_shape(each, dims), each.dtype) for each in declared if each.name != data.name}
    made = _pictures(path, shape) if kind in PICTURES else _pieces(path, data, shape)
    for array in made:
        yield {**others, data.name: array}


def _data_input(declared: Sequence[Tensor], dims: Mapping[str, int], path: Path) -> tuple[Tensor, list[int]]:
    """The one input of float32, which the file becomes; masks and lengths beside it are 1."""
    floats = [each for each in declared if each.dtype == "float32"]
    if len(floats) != 1 or any(each.dtype.startswith("float") for each in declared if each not in floats):
        kinds = ", ".join(each.dtype for each in declared)
        raise InputError(f"{path.name} fits models of one float32 input, this one takes {kinds}; give .npz files")
    shape = _shape(floats[0], dims)
    if path.suffix.lower() in PICTURES and (len(shape) != 4 or shape[1] not in (1, 3)):
        raise InputError(f"input {floats[0].name!r} of shape {shape} is no picture [N, 1 or 3, H, W]; give .npz files")
    return floats[0], shape


def _shape(tensor: Tensor, dims: Mapping[str, int]) -> list[int]:
    return [size if isinstance(size, int) else dims.get(size, 1) for size in tensor.shape]


def _pictures(path: Path, shape: Sequence[int]) -> Iterator[Array]:
    gray = load_gray(path)
    for rows, columns in _PARTS:
        for row in np.array_split(gray, min(rows, gray.shape[0]), axis=0):
            for part in np.array_split(row, min(columns, gray.shape[1]), axis=1):
                scaled = resample(part, shape[2], shape[3]) / 127.5 - 1
                yield np.ascontiguousarray(np.broadcast_to(scaled.astype(np.float32), shape))


def _pieces(path: Path, tensor: Tensor, shape: Sequence[int]) -> Iterator[Array]:
    if not shape or len(shape) > 3:
        raise InputError(f"input {tensor.name!r} of shape {list(shape)} is no recording; give .npz files")
    sound = read_recording(path)
    size = int(np.prod(shape))
    for at in range(min(max(len(sound) // size, 1), _PIECES)):
        yield np.resize(sound[at * size :][:size], shape)
