"""What a bundle says of itself: an in-toto statement over all its members, with the facts that a reader needs first.

The layout is in `docs/bundle.md`. A reader refuses a newer major version and ignores keys that it does not know.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagsplit.errors import BundleError

FORMAT = (1, 5)
"""Major and minor version of the bundle format."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:flagsplit:bundle:1"

_Name = Annotated[str, Field(min_length=1, max_length=4096)]
_Size = Annotated[int, Field(ge=0, le=1 << 44)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Digest(_Frozen):
    """The SHA-256 of a member, lower-case hexadecimal."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Subject(_Frozen):
    """A member of the bundle and its digest."""

    name: _Name
    digest: Digest


class Tensor(_Frozen):
    """A graph input or output: NumPy element type; sizes, or symbols where a dimension is open."""

    name: _Name
    dtype: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[int | str], Field(max_length=64)]


class TierArtifact(_Frozen):
    """What one target made for a tier.

    Attributes:
        target: the target's name.
        version: version of the compiler behind it at the build.
        folder: where its files lie in the bundle.
        entries: file of each segment and atom, relative to `folder`.
        options: what the target's `load` needs to know.
        chains: since 1.1, for segments that can be run as atoms, the ids of these in order.
        weight_bytes: since 1.1, the weights of each segment and atom.
    """

    target: _Name
    version: str
    folder: _Name
    entries: dict[str, str]
    options: dict[str, str] = {}
    chains: dict[str, Annotated[list[str], Field(max_length=100_000)]] = {}
    weight_bytes: dict[str, _Size] = {}


class Tier(_Frozen):
    """A tier of the line: its name, its device in the catalogue, and its artifacts.

    The first artifact is ONNX Runtime's; those of chips follow since 1.3, the preferred first.
    """

    name: _Name
    device: _Name
    artifacts: Annotated[list[TierArtifact], Field(min_length=1, max_length=16)]


class Model(_Frozen):
    """The model that was built: its name and the SHA-256 of the file as it was given."""

    name: str
    sha256: str


class Facts(_Frozen):
    """The predicate of the statement.

    `sla` and `recipe` are there since 1.2: the policy that it was built under, and what else a build needs, for
    `flagsplit.apps.recipe` to read. They are plain data here, because a bundle runs without them. Since 1.4 `dim_sizes`
    lists the only sizes that symbols have, where the build was given lists.
    """

    format: tuple[int, int]
    model: Model
    tiers: Annotated[list[Tier], Field(min_length=1, max_length=16)]
    inputs: list[Tensor]
    outputs: list[Tensor]
    nominal_dims: dict[str, int]
    dim_ranges: dict[str, tuple[int, int]] = {}
    dim_sizes: dict[str, Annotated[list[_Size], Field(max_length=1024)]] = {}
    weights_bytes: _Size
    sizes: dict[str, _Size]
    metadata: dict[str, str] = {}
    built_with: str = ""
    sla: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None


class Manifest(_Frozen):
    """An in-toto statement whose predicate describes a bundle."""

    statement_type: Annotated[str, Field(alias="_type")]
    subject: Annotated[list[Subject], Field(max_length=100_000)]
    predicate_type: Annotated[str, Field(alias="predicateType")]
    predicate: Facts


def write_manifest(subjects: dict[str, str], facts: Facts) -> bytes:
    """The manifest's bytes, the same for the same content.

    Args:
        subjects: SHA-256 by member.
        facts: the predicate.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": facts.model_dump(mode="json"),
    }
    return json.dumps(statement, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def read_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: it is damaged, or of another major version.
    """
    try:
        loaded: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the bundle's manifest is not JSON: {error}; get the bundle again") from None
    version = _version_of(loaded)
    if version is not None and version != FORMAT[0]:
        raise BundleError(
            f"expected a bundle of format {FORMAT[0]}.x, came {version}.x; "
            f"{'upgrade flagsplit' if version > FORMAT[0] else 'build the bundle again'}"
        )
    try:
        manifest = Manifest.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        text = " ".join(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".split())
        raise BundleError(f"the bundle's manifest is damaged at {text[:300]}; get the bundle again") from None
    if manifest.statement_type != STATEMENT_TYPE or manifest.predicate_type != PREDICATE_TYPE:
        raise BundleError(f"expected a flagsplit bundle, came a statement of {manifest.predicate_type!r}")
    return manifest


def _version_of(loaded: Any) -> int | None:
    try:
        version = loaded["predicate"]["format"][0]
    except (KeyError, IndexError, TypeError):
        return None
    return version if isinstance(version, int) else None
