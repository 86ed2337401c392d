"""Inputs to verify a bundle on: from files, from the zoo's pictures and recordings, or made up.

A picture is scaled to the input's height and width and to -1..1, a recording cut to the input's length. That is what
most networks are trained on, near enough to reach what they do with data, not a preprocessing to rely on.
"""

import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.apps.input_files import made_up_inputs, read_inputs
from flagsplit.apps.ocr.page import load_gray
from flagsplit.apps.ocr.recogniser import resample
from flagsplit.apps.verification import Sample
from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.inputs import check_inputs
from flagsplit.runtime.manifest import Tensor
from flagsplit.targets.interface import Array

_PICTURE_CHANNELS = (1, 3)


def given_sample(bundle: Bundle, given: Mapping[str, object] | Path, label: str = "given") -> Sample:
    """Inputs that the user gives, as arrays by name or as an `.npz` file.

    Raises:
        InputError: they are not what the bundle takes.
    """
    if isinstance(given, Path):
        return Sample(str(given), read_inputs(bundle, given))
    return Sample(label, check_inputs(bundle.inputs, given, *bundle.sizes))


def random_samples(bundle: Bundle, count: int, seed: int, dims: Mapping[str, int]) -> list[Sample]:
    """Seeded random inputs, as `flagsplit run` makes them up.

    Raises:
        InputError: a size is out of range, or an input cannot be made up.
    """
    made = [(at, made_up_inputs(bundle, dims, at)) for at in range(seed, seed + count)]
    return [
        Sample(f"random, seed {at}", check_inputs(bundle.inputs, each, *bundle.sizes), made_up=True)
        for at, each in made
    ]


def zoo_sample(bundle: Bundle, name: str) -> Sample:
    """A picture or a recording of the zoo as the one float input of a model; other inputs, masks mostly, are 1.

    Raises:
        ConfigError: the zoo has no picture or recording of that name, or what reads it is not installed.
        InputError: the model does not take a picture or a recording.
        PeerError: it cannot be fetched.
    """
    kinds = {entry.name: entry.kind for entry in zoo.entries()}
    usable = [entry for entry, kind in kinds.items() if kind in ("image", "audio")]
    if name not in usable:
        raise ConfigError(f"expected a picture or a recording of the zoo ({', '.join(usable)}), came {name!r}")
    dims = bundle.facts.nominal_dims
    shapes = {
        each.name: [size if isinstance(size, int) else dims.get(size, 1) for size in each.shape]
        for each in bundle.inputs
    }
    floats = [each for each in bundle.inputs if each.dtype == "float32"]
    others = [each for each in bundle.inputs if each.dtype.startswith(("int", "uint", "bool"))]
    if len(floats) != 1 or len(floats) + len(others) < len(bundle.inputs):
        kind = ", ".join(each.dtype for each in bundle.inputs)
        raise InputError(f"{name} fits models of one float32 input, this one takes {kind}; use --input")
    read = _picture if kinds[name] == "image" else _recording
    arrays: dict[str, object] = {each.name: np.ones(shapes[each.name], each.dtype) for each in others}
    arrays[floats[0].name] = read(zoo.pull(name), floats[0], shapes[floats[0].name])
    return Sample(name, check_inputs(bundle.inputs, arrays, *bundle.sizes))


def _picture(path: Path, tensor: Tensor, shape: Sequence[int]) -> Array:
    if len(shape) != 4 or shape[1] not in _PICTURE_CHANNELS:
        raise InputError(f"input {tensor.name!r} of shape {list(shape)} is no picture [N, 1 or 3, H, W]; use --input")
    gray = resample(load_gray(path), shape[2], shape[3])
    return np.broadcast_to((gray / 127.5 - 1).astype(np.float32), shape)


def _recording(path: Path, tensor: Tensor, shape: Sequence[int]) -> Array:
    """The beginning, in -1..1, over again if it is too short; each row of a batch goes on where the one before ends."""
    if not shape or len(shape) > 3:
        raise InputError(f"input {tensor.name!r} of shape {list(shape)} is no recording; use --input")
    return np.resize(read_recording(path), shape)


def read_recording(path: Path) -> NDArray[np.float32]:
    """The first channel of a recording, in -1..1 at its own rate.

    Raises:
        ConfigError: it is no recording of 16 bits.
    """
    try:
        with wave.open(str(path)) as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise ConfigError(f"expected a recording in {path}; it cannot be read: {error}") from None
    if width != 2:
        raise ConfigError(f"expected a recording of 16 bits in {path}, came {8 * width}")
    sound = np.asarray(np.frombuffer(data, "<i2")[::channels] / 32768, np.float32)
    if not sound.size:
        raise ConfigError(f"expected a recording in {path}, it is empty")
    return sound
