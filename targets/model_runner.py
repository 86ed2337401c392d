"""Running a model that is in memory on ONNX Runtime, each of its nodes as the standard says."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from flagsplit.flagir.reference import DATA_SUFFIX, write_reference
from flagsplit.targets.interface import Array
from flagsplit.targets.onnx_engine import PAIRS_AS_THEY_ARE, open_onnx


def run_model(model: ir.Model, samples: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    """Run a model on samples of its inputs, one after the other.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        InputError: a sample does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="flagsplit-run-") as folder:
        file = write_reference(model, Path(folder) / "model.onnx")[0]
        data = file.with_name(file.name + DATA_SUFFIX)
        engine = open_onnx(file, data if data.is_file() else None, "fast", 0, PAIRS_AS_THEY_ARE)
        try:
            for sample in samples:
                yield engine.run({spec.name: sample[spec.name] for spec in engine.inputs})
        finally:
            engine.close()
