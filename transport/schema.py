"""Checks between untrusted header fields and the frozen message classes.

A field's type carries its limit: `Annotated[str, Text(64)]`. `StructOf(cls)` reads those annotations once, and turns
an instance into plain msgpack values and back, with every length, range and type checked on the way in *and* on the way
out, so that we never send what we would refuse. The messages themselves are in `messages.py`.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from flagsplit.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Appended:
    """Marks a field that came after the first version: it stays off the wire where it has its default."""


APPENDED: Final = Appended()


class Check(Protocol):
    """Both directions of one field; `where` names the field in the error."""

    def dump(self, value: Any, where: str) -> object:
        """Plain msgpack value of a field."""

    def load(self, raw: object, where: str) -> Any:
        """Field value of a plain msgpack value. Raises ProtocolError."""


def _expected(where: str, what: str, came: object) -> ProtocolError:
    shown = repr(came)
    return ProtocolError(f"{where}: expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def _size_utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `limit_bytes` of UTF-8, matching `pattern` when there is one."""

    limit_bytes: int
    pattern: re.Pattern[str] | None = None

    def dump(self, value: Any, where: str) -> object:
        return self.load(value, where)

    def load(self, raw: object, where: str) -> Any:
        if not isinstance(raw, str) or _size_utf8(raw) > self.limit_bytes:
            raise _expected(where, f"a string of at most {self.limit_bytes} bytes", raw)
        if self.pattern is not None and not self.pattern.fullmatch(raw):
            raise _expected(where, f"a string like {self.pattern.pattern}", raw)
        return raw


@dataclass(frozen=True, slots=True)
class Prose:
    """Text for people. Cut to size when sent; what a terminal would act on is replaced, whoever wrote it."""

    limit_bytes: int

    def dump(self, value: Any, where: str) -> object:
        if not isinstance(value, str):
            raise _expected(where, "a string", value)
        cut = value.encode("utf-8", "replace")[: self.limit_bytes].decode("utf-8", "ignore")
        return self.load(cut, where)

    def load(self, raw: object, where: str) -> Any:
        if not isinstance(raw, str) or _size_utf8(raw) > self.limit_bytes:
            raise _expected(where, f"a string of at most {self.limit_bytes} bytes", raw)
        return raw if raw.isprintable() else "".join(c if c.isprintable() else " " for c in raw)


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer in low..high, both included."""

    low: int
    high: int

    def dump(self, value: Any, where: str) -> object:
        return self.load(value, where)

    def load(self, raw: object, where: str) -> Any:
        # bool is an int to Python, but not to any other implementation of the protocol.
        if type(raw) is not int or not self.low <= raw <= self.high:
            raise _expected(where, f"an integer in {self.low}..{self.high}", raw)
        return raw


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def dump(self, value: Any, where: str) -> object:
        return self.load(value, where)

    def load(self, raw: object, where: str) -> Any:
        if type(raw) is not bool:
            raise _expected(where, "true or false", raw)
        return raw


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of `fewest`..`most` items; a tuple in Python."""

    item: Check
    most: int
    fewest: int = 0

    def _sized(self, raw: object, where: str) -> list[object] | tuple[object, ...]:
        if not isinstance(raw, list | tuple) or not self.fewest <= len(raw) <= self.most:
            raise _expected(where, f"a list of {self.fewest}..{self.most} items", raw)
        return raw

    def dump(self, value: Any, where: str) -> object:
        return [self.item.dump(item, f"{where}[{i}]") for i, item in enumerate(self._sized(value, where))]

    def load(self, raw: object, where: str) -> Any:
        return tuple(self.item.load(item, f"{where}[{i}]") for i, item in enumerate(self._sized(raw, where)))


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map of at most `most` entries with string keys."""

    key: Text
    item: Check
    most: int

    def _sized(self, raw: object, where: str) -> Mapping[object, object]:
        if not isinstance(raw, Mapping) or len(raw) > self.most:
            raise _expected(where, f"a map of at most {self.most} entries", raw)
        return raw

    def dump(self, value: Any, where: str) -> object:
        pairs = self._sized(value, where).items()
        return {self.key.load(k, f"{where} key"): self.item.dump(v, f"{where}[{k!r}]") for k, v in pairs}

    def load(self, raw: object, where: str) -> Any:
        pairs = self._sized(raw, where).items()
        return {self.key.load(k, f"{where} key"): self.item.load(v, f"{where}[{k!r}]") for k, v in pairs}


class StructOf:
    """A map that is a dataclass: fields without a `Check` in their annotation stay off the wire.

    A missing key takes the field's default; an unknown key is ignored: that is how messages grow. A class may add
    `check_wire(where)` for rules that span fields.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls
        hints = typing.get_type_hints(cls, include_extras=True)
        self._fields: list[tuple[str, Check, Callable[[], object] | None, bool]] = []
        for field in dataclasses.fields(cls):
            marks = getattr(hints[field.name], "__metadata__", ())
            checks = [mark for mark in marks if hasattr(mark, "load")]
            if checks:
                self._fields.append((field.name, checks[0], _default_of(field), APPENDED in marks))

    def dump(self, value: Any, where: str) -> dict[str, object]:
        if type(value) is not self.cls:
            raise _expected(where, f"a {self.cls.__name__}", value)
        _cross_check(value, where)
        return {
            name: check.dump(getattr(value, name), f"{where}.{name}")
            for name, check, default, appended in self._fields
            if not (appended and default is not None and getattr(value, name) == default())
        }

    def load(self, raw: object, where: str, **off_wire: object) -> Any:
        if not isinstance(raw, Mapping):
            raise _expected(where, "a map", raw)
        values: dict[str, object] = dict(off_wire)
        for name, check, default, _ in self._fields:
            if name in raw:
                values[name] = check.load(raw[name], f"{where}.{name}")
            elif default is None:
                raise ProtocolError(f"{where}.{name}: the field is missing and has no default")
            else:
                values[name] = default()
        loaded = self.cls(**values)
        _cross_check(loaded, where)
        return loaded


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], object] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is not dataclasses.MISSING:
        default = field.default
        return lambda: default
    return None


def _cross_check(value: object, where: str) -> None:
    check = getattr(value, "check_wire", None)
    if check is not None:
        check(where)
