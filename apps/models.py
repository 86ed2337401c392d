"""Reading what a command was given, a bundle or a model file, as a canonical graph."""

import zipfile
from pathlib import Path

import onnx_ir as ir

from flagsplit import flagir
from flagsplit.apps.groundwork import BuildOptions
from flagsplit.apps.linked import link_program, program_of
from flagsplit.flagir.frontends.any_model import Source
from flagsplit.runtime.bundle import GRAPH_NAME, open_bundle


def canonical_graph(path: Path, *, trusted: bool = False) -> tuple[ir.Model, dict[str, int]]:
    """The canonical graph of a bundle or a model, and the nominal sizes that come with it.

    Args:
        path: a `.flagsplit` bundle, or whatever `flagsplit build` takes; programs are linked.
        trusted: see `flagsplit.flagir.frontends.any_model.Source`.

    Raises:
        BundleError, ModelError: the file is neither, or is damaged.
        ConfigError, PeerError: there is no such program, or it cannot be fetched.
    """
    if is_bundle(path):
        bundle = open_bundle(path)
        return flagir.load((bundle.folder / GRAPH_NAME).parent), dict(bundle.facts.nominal_dims)
    source = Source(path, trusted=trusted)
    program = program_of(source)
    if program is not None:
        linked = link_program(program, BuildOptions())
        return linked.model, dict(linked.options.dims)
    model = source.read()
    flagir.canonicalize(model)
    return model, {}


def is_bundle(path: Path) -> bool:
    """Whether a file is a bundle, or at least no model."""
    return path.suffix == ".flagsplit" or (path.suffix != ".pt2" and path.is_file() and zipfile.is_zipfile(path))
