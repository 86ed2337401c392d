"""How the tensors that codecs make are called, and what a name says.

VALUE.CODEC.ROLE             an encoded tensor: its role is "payload", "scale", "zero_point" or "shape"
VALUE.CODEC.check            how many numbers of the value were not finite (`flagsplit.flagir.codecs.checks`)
VALUE.CODEC.at_TIER          the value as a tier decoded it
NAME_2, NAME.after_DIGEST    the same where the name was taken, or where a loss was before (`variants`)
"""

import re
from dataclasses import dataclass

from flagsplit.flagir.codecs.table import codec_names

CHECK = "check"
AFTER_DIGITS = 12
"""Length of the digest in `.after_DIGEST`."""

_ROLES = ("payload", "scale", "zero_point", "shape", CHECK)
_ENCODED = re.compile(
    rf"(?P<value>.+)\.(?P<codec>{'|'.join(codec_names()[1:])})\.(?P<role>{'|'.join(_ROLES)})"
    rf"(?P<rest>(_\d+)?(\.after_[0-9a-f]{{{AFTER_DIGITS}}})?)",
    re.DOTALL,
)


@dataclass(frozen=True)
class EncodedName:
    """What the name of an encoded tensor says.

    Attributes:
        value: the name of the value.
        codec: the codec's name.
        role: "payload", "scale", "zero_point", "shape" or "check".
        rest: what was added to the name after that; equal for all that one Encode made, unless a name was taken.
    """

    value: str
    codec: str
    role: str
    rest: str = ""

    def with_role(self, role: str) -> str:
        """The name of the same value's tensor of another role."""
        return f"{self.value}.{self.codec}.{role}{self.rest}"


def encoded_name(value: str, codec: str, role: str) -> str:
    """The name of an encoded tensor, as long as it is not taken."""
    return EncodedName(value, codec, role).with_role(role)


def read_encoded_name(name: str) -> EncodedName | None:
    """What a name says; None unless it is that of an encoded tensor."""
    found = _ENCODED.fullmatch(name)
    return EncodedName(found["value"], found["codec"], found["role"], found["rest"]) if found else None
