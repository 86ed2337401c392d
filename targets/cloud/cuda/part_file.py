"""A part's ONNX file, its large weights in the bundle's shared file."""

from pathlib import Path

import onnx
import onnx_ir as ir

from flagsplit.errors import BundleError, ModelError
from flagsplit.flagir.limits import check_limits
from flagsplit.flagir.tensor_data import check_tensor


def read_part(file: Path, weights: Path) -> ir.Model:
    """Read a part; its weights stay mapped.

    Args:
        file: the ONNX file.
        weights: the shared weights file of the bundle.

    Raises:
        BundleError: it is damaged, or refers to another file than that of the weights.
    """
    try:
        check_limits(file)
        model = ir.serde.deserialize_model(_parsed(file))
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                if Path(tensor.location).name != weights.name or Path(tensor.location).parent != Path():
                    raise BundleError(f"{file.name} refers to {tensor.location!r}, not to {weights.name}; get it again")
                value.const_value = tensor = ir.ExternalTensor(
                    weights.name,
                    tensor.offset,
                    tensor.length,
                    tensor.dtype,
                    shape=tensor.shape,
                    name=tensor.name or "",
                    base_dir=weights.parent,
                )
            check_tensor(tensor, weights.parent.resolve())
    except (OSError, ModelError, ValueError) as error:
        raise BundleError(f"{file.name} cannot be read: {' '.join(str(error).split())[:200]}; get it again") from error
    return model


def _parsed(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(file.read_bytes())
    except Exception as error:  # protobuf's own
        raise BundleError(f"{file.name} is no ONNX file; get it again") from error
