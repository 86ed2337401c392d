"""Inputs to verify a bundle on: from files, from the zoo's pictures and recordings, or made up.

A picture is scaled to the input's height and width and to -1..1, a recording cut to the input's length. That is what
most networks are trained on, near enough to reach what they do with data, not a preprocessing to rely on. Programs say
what they read of a sound, and get that.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flagsplit.apps import zoo
from flagsplit.apps.input_files import made_up_inputs, read_inputs
from flagsplit.apps.ocr.page import load_gray
from flagsplit.apps.ocr.recogniser import resample
from flagsplit.apps.speech.features import sound_input
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.verification import Sample
from flagsplit.errors import ConfigError, InputError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.inputs import check_inputs
from flagsplit.runtime.manifest import Tensor
from flagsplit.runtime.program_parts import ProgramParts
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


def real_sample(bundle: Bundle, given: str) -> Sample:
    """A picture or a recording as the one float input of a model; other inputs, masks mostly, are 1.

    Args:
        bundle: whose inputs are wanted; recordings get the rate of its program, if it has one.
        given: name of a picture or recording of the zoo, or path of a WAV file.

    Raises:
        ConfigError: there is neither, or what reads it is not installed.
        InputError: the model does not take a picture or a recording, or the file is none.
        PeerError: it cannot be fetched.
    """
    kinds = {entry.name: entry.kind for entry in zoo.entries()}
    usable = [entry for entry, kind in kinds.items() if kind in ("image", "audio")]
    if given not in usable and not Path(given).is_file():
        names = ", ".join(usable)
        raise ConfigError(f"expected a picture or a recording of the zoo ({names}), or a WAV file, came {given!r}")
    dims = bundle.facts.nominal_dims
    shapes = {
        each.name: [size if isinstance(size, int) else dims.get(size, 1) for size in each.shape]
        for each in bundle.inputs
    }
    floats = [each for each in bundle.inputs if each.dtype == "float32"]
    others = [each for each in bundle.inputs if each.dtype.startswith(("int", "uint", "bool"))]
    if len(floats) != 1 or len(floats) + len(others) < len(bundle.inputs):
        kind = ", ".join(each.dtype for each in bundle.inputs)
        raise InputError(f"{given} fits models of one float32 input, this one takes {kind}; use --input")
    arrays: dict[str, object] = {each.name: np.ones(shapes[each.name], each.dtype) for each in others}
    (data,), path = floats, zoo.pull(given) if given in usable else Path(given)
    if kinds.get(given) == "image":
        arrays[data.name] = _picture(path, data, shapes[data.name])
    else:
        arrays[data.name] = _recording(path, data, shapes[data.name], bundle.program)
    return Sample(given, check_inputs(bundle.inputs, arrays, *bundle.sizes))


def _picture(path: Path, tensor: Tensor, shape: Sequence[int]) -> Array:
    if len(shape) != 4 or shape[1] not in _PICTURE_CHANNELS:
        raise InputError(f"input {tensor.name!r} of shape {list(shape)} is no picture [N, 1 or 3, H, W]; use --input")
    gray = resample(load_gray(path), shape[2], shape[3])
    return np.broadcast_to((gray / 127.5 - 1).astype(np.float32), shape)


def _recording(path: Path, tensor: Tensor, shape: Sequence[int], program: ProgramParts | None) -> Array:
    """The beginning, in -1..1, over again if it is too short; each row of a batch goes on where the one before ends."""
    if not shape or len(shape) > 3:
        raise InputError(f"input {tensor.name!r} of shape {list(shape)} is no recording; use --input")
    if program is None:
        return np.resize(read_recording(path, most=math.prod(shape)), shape)
    read = sound_input(program.facts, tensor.name, shape)
    samples = read_recording(path, program.facts.sample_rate_hz, read.max_samples)
    return read.tensors(np.resize(samples, read.max_samples))[tensor.name]


def read_recording(path: Path, rate_hz: int = 0, most: int | None = None) -> NDArray[np.float32]:
    """The beginning of a WAV file of any kind, in -1..1, its channels averaged.

    Args:
        path: the file.
        rate_hz: samples per second; 0 for those of the file.
        most: samples that are wanted; None for all.

    Raises:
        InputError: it is no WAV file with samples.
    """
    blocks, count = [], 0
    with WavReader(path) as reader:
        for block in reader.blocks(rate_hz):
            blocks.append(block)
            count += len(block)
            if most is not None and count >= most:
                break
    return np.concatenate(blocks)[:most]
