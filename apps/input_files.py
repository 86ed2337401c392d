"""What a bundle is asked with: arrays out of a file, or seeded random ones of the declared shapes."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flagsplit.errors import InputError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.inputs import check_inputs, random_inputs
from flagsplit.runtime.manifest import Tensor
from flagsplit.targets.interface import Array


def read_inputs(bundle: Bundle, file: Path) -> dict[str, Array]:
    """The inputs of one request from an `.npz` file, an array by name each.

    Raises:
        InputError: the file is missing or no such file, or the arrays are not what the bundle takes.
    """
    return read_arrays(bundle.inputs, *bundle.sizes, file)


def read_arrays(
    declared: Sequence[Tensor], ranges: Mapping[str, tuple[int, int]], listed: Mapping[str, Sequence[int]], file: Path
) -> dict[str, Array]:
    """Arrays from an `.npz` file that are what a graph takes.

    Args:
        declared: the graph inputs.
        ranges: smallest and largest size of open dimensions.
        listed: the only sizes of open dimensions.
        file: an array by name each.

    Raises:
        InputError: the file is missing or no such file, or the arrays are not what the graph takes.
    """
    if not file.is_file():
        raise InputError(f"no such input file: {file}")
    if not zipfile.is_zipfile(file):
        raise InputError(f"expected an .npz file, {file} is none or is truncated; write it with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            return check_inputs(declared, arrays, ranges, listed)
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"expected an .npz file of plain arrays, {file} is not one ({text})") from None


def made_up_inputs(bundle: Bundle, dims: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Seeded random inputs of one request.

    Args:
        bundle: what it is for.
        dims: a size for open dimensions; the others get the size that was planned for.
        seed: same seed, same inputs.

    Raises:
        InputError: `dims` names no open dimension, or an input cannot be made up.
    """
    known = {size for tensor in bundle.inputs for size in tensor.shape if isinstance(size, str)}
    unknown = sorted(set(dims) - known)
    if unknown:
        raise InputError(f"--dim expects an open dimension ({', '.join(sorted(known)) or 'none'}), came {unknown[0]!r}")
    return random_inputs(bundle.inputs, {**bundle.facts.nominal_dims, **dims}, seed)
