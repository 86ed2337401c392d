"""Activation codecs: how a tensor is made smaller for a link, as ONNX functions of the `flagir` domain.

`table` says which codecs there are and what they make of a tensor, `names` how that is called, `functions` has their
bodies, `apply` puts them on a placed graph, `checks` counts what they would hide, and `variants` keeps the graphs of
several plans apart. The tier that sends runs the Encode, the tiers that receive run the Decode, and the graph with both
is one ONNX model: the reference that a split run must match.
"""

from flagsplit.flagir.codecs.apply import BoundaryCut, apply_codecs, boundary_cuts
from flagsplit.flagir.codecs.checks import add_checks
from flagsplit.flagir.codecs.functions import DOMAIN, DOMAIN_VERSION
from flagsplit.flagir.codecs.names import EncodedName, encoded_name, read_encoded_name
from flagsplit.flagir.codecs.table import NO_CODEC, codec_names, codecs_for, encoded_bytes, encoded_types
from flagsplit.flagir.codecs.variants import join_variant, name_what_is_lossy

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "NO_CODEC",
    "BoundaryCut",
    "EncodedName",
    "add_checks",
    "apply_codecs",
    "boundary_cuts",
    "codec_names",
    "codecs_for",
    "encoded_bytes",
    "encoded_name",
    "encoded_types",
    "join_variant",
    "name_what_is_lossy",
    "read_encoded_name",
]
