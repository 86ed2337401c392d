"""The reference of a plan: one ONNX model with its placement and its codecs, which every split run must match.

It is the whole graph again, so any ONNX tool opens it and ONNX Runtime runs it. Where a plan has no codecs it computes
what the model without a plan computes.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from flagsplit.errors import ConfigError
from flagsplit.flagir.codecs import BoundaryCut, apply_codecs
from flagsplit.flagir.placement import plans_on, read_placement
from flagsplit.flagir.store import to_bytes

DATA_SUFFIX = ".data"
"""What is added to a model's file name for that of its weights, where they do not fit into it."""

_MOST_INLINE_BYTES = 1 << 30
"""A protobuf ends at 2 GiB, and few tools like one half that size."""

_SMALL_BYTES = 256
"""Up to here constants stay in the model: engines infer shapes from them before they read the second file."""


def reference(model: ir.Model, plan: str, cuts: Iterable[BoundaryCut] = ()) -> ir.Model:
    """The model under one of its plans, with the codecs of that plan.

    Args:
        model: a canonical model that carries the plan; it stays as it is.
        plan: the plan's name; the copy has no other.
        cuts: the codec of each boundary value, as `apply_codecs` takes them.

    Returns:
        A copy that shares its weights with `model`.

    Raises:
        ModelError: the model does not carry the plan, or a cut does not belong to it.
    """
    read_placement(model, plan)
    copy = model.clone()
    for other in plans_on(copy):
        if other != plan:
            copy.remove_device_configuration(other, cascade=True)
    apply_codecs(copy, cuts)
    return copy


def write_reference(model: ir.Model, path: Path, *, most_inline_bytes: int = _MOST_INLINE_BYTES) -> tuple[Path, ...]:
    """Write a model as one file, or as two where its weights are large.

    Args:
        model: from `reference`; it stays as it is.
        path: the file to write, replaced if it is there.
        most_inline_bytes: with more weights than this they go to a second file beside it, named `PATH.data`.

    Returns:
        The files written, the model first.

    Raises:
        ConfigError: a file cannot be written.
    """
    data = path.with_name(path.name + DATA_SUFFIX)
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    outside = sum(sizes) > most_inline_bytes
    written = model.clone()
    try:
        with tempfile.TemporaryDirectory(prefix=".flagsplit-reference-", dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            if outside:
                ir.external_data.unload_from_model(written, scratch, data.name, size_threshold_bytes=_SMALL_BYTES)
            else:
                ir.external_data.load_to_model(written)
            made.write_bytes(to_bytes(written))
            if outside:
                made.with_name(data.name).replace(data)
            made.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place with -o") from None
    return (path, data) if outside else (path,)
