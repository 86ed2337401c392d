"""Reading what a command was given, a bundle or a model file, as a canonical graph."""

import zipfile
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.runtime.bundle import GRAPH_NAME, open_bundle


def canonical_graph(path: Path, *, trusted: bool = False) -> tuple[ir.Model, dict[str, int]]:
    """The canonical graph of a bundle or a model, and the nominal sizes that come with it.

    Args:
        path: a `.flagsplit` bundle, or whatever `flagsplit build` takes.
        trusted: see `flagsplit.flagir.frontends.any_model.Source`.

    Raises:
        BundleError, ModelError: the file is neither, or is damaged.
    """
    if is_bundle(path):
        bundle = open_bundle(path)
        return flagir.load((bundle.folder / GRAPH_NAME).parent), dict(bundle.facts.nominal_dims)
    model = Source(path, trusted=trusted).read()
    flagir.canonicalize(model)
    return model, {}


def is_bundle(path: Path) -> bool:
    """Whether a file is a bundle, or at least no model."""
    return path.suffix == ".flagsplit" or (path.suffix != ".pt2" and path.is_file() and zipfile.is_zipfile(path))
