"""The version of FlagIR that a model says it has; `docs/flagir.md` tells what each version holds."""

import re

import onnx_ir as ir

from flagsplit.errors import ModelError

VERSION = (1, 0)
"""Major and minor version of what `canonicalize` makes."""
VERSION_KEY = "flagir.version"
"""Key of the model's metadata that holds it, as `MAJOR.MINOR`."""

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


def write_version(model: ir.Model) -> None:
    """Say that a model is of the current version."""
    model.metadata_props[VERSION_KEY] = "{}.{}".format(*VERSION)


def check_version(model: ir.Model) -> None:
    """Refuse what a later major version may mean otherwise. A model without a version is any ONNX model.

    Raises:
        ModelError: the major version is not ours, or what stands there is no version.
    """
    text = model.metadata_props.get(VERSION_KEY)
    if text is None:
        return
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ModelError(f"expected {VERSION_KEY} to be MAJOR.MINOR, came {text[:40]!r}; the model is damaged")
    if int(found[1]) != VERSION[0]:
        raise ModelError(
            f"expected FlagIR version {VERSION[0]}, the model has version {text}; "
            f"{'update flagsplit' if int(found[1]) > VERSION[0] else 'make it again from the original model'}"
        )
