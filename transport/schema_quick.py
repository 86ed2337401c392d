"""The quick way through the checks of `schema.py`: one flat function per message class and direction.

Written as source and compiled, as the standard library does for dataclasses, because a call for each field is what
encoding and decoding spend most of their time on. A quick function only ever says yes: on anything that is not plainly
within the limits it returns None or raises ProtocolError, and the caller goes the slow way, which decides and explains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

ABSENT: Final = object()
"""Stands for a default that a field does not have."""


@dataclass(frozen=True, slots=True)
class WireField:
    """A field on the wire.

    Attributes:
        name: of the field.
        plain: a condition on `{0}` under which the value passes unchanged; empty if there is none.
        dump, load: what converts any other value.
        default: ABSENT if the field has none.
        shared: whether messages may hold that very object, because nothing can change it.
        left_out: whether it stays off the wire where it has its default.
    """

    name: str
    plain: str
    dump: Callable[[Any], object]
    load: Callable[[object], object]
    default: object
    shared: bool
    left_out: bool


def quick_dump(fields: Sequence[WireField]) -> Callable[[Any], dict[str, object] | None]:
    """Turns a message into a map, unless it has to be looked at closely."""
    lines = [f"v{i} = message.{field.name}" for i, field in enumerate(fields)]
    always = [(i, field) for i, field in enumerate(fields) if not field.left_out]
    lines += _refuse_unless(always)
    for i, field in enumerate(fields):
        value = f"v{i}" if field.plain and not field.left_out else f"dump{i}(v{i})"
        put = f"header[{field.name!r}] = {value}"
        lines.append(f"if v{i} != default{i}: {put}" if field.left_out else put)
    quick: Callable[[Any], dict[str, object] | None] = _compiled(
        "message", ["header = {}", *lines, "return header"], fields
    )
    return quick


def quick_load(cls: type, fields: Sequence[WireField]) -> Callable[[dict[str, object], dict[str, object]], Any]:
    """Turns a map, and what is off the wire, into a message, unless it has to be looked at closely."""
    lines = ["get = header.get"]
    for i, field in enumerate(fields):
        if field.plain:
            lines.append(f"v{i} = get({field.name!r}, default{i})")
            continue
        # A default is what the field holds, not what the wire does.
        lines.append(f"v{i} = get({field.name!r}, absent)")
        lines.append(f"if v{i} is not absent: v{i} = load{i}(v{i})")
        lines.append(f"else: v{i} = default{i}" if field.shared else "else: return None")
    lines += _refuse_unless(list(enumerate(fields)))
    arguments = ", ".join(f"{field.name}=v{i}" for i, field in enumerate(fields))
    construct = f"return cls({arguments}, **off_wire)"
    quick: Callable[[dict[str, object], dict[str, object]], Any] = _compiled(
        "header, off_wire", [*lines, construct], fields, cls
    )
    return quick


def _refuse_unless(fields: Sequence[tuple[int, WireField]]) -> list[str]:
    conditions = [field.plain.format(f"v{i}") for i, field in fields if field.plain]
    return [f"if not ({' and '.join(conditions)}): return None"] if conditions else []


def _compiled(parameters: str, lines: Sequence[str], fields: Sequence[WireField], cls: type | None = None) -> Any:
    names: dict[str, Any] = {"cls": cls, "absent": ABSENT}
    for i, field in enumerate(fields):
        names |= {f"dump{i}": field.dump, f"load{i}": field.load, f"default{i}": field.default}
    source = "\n ".join([f"def quick({parameters}):", *lines])
    exec(compile(source, "<fields of a message>", "exec"), names)  # noqa: S102 - all of it is ours, nothing is a peer's
    return names["quick"]
