"""Checks between untrusted header fields and the frozen message classes.

A field's type carries its limit: `Annotated[str, Text(64)]`. `StructOf(cls)` reads those annotations once, and turns
an instance into plain msgpack values and back, with every length, range and type checked on the way in *and* on the way
out, so that we never send what we would refuse. The messages themselves are in `messages.py`.

Nothing is put together that only an error would need: a check that fails says what it expected, and each struct, list
and map around it puts its part of the place in front while the error passes. `schema_quick.py` is the way that nearly
every message takes; what it does not take at once comes here.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeGuard

from flagsplit.errors import ProtocolError
from flagsplit.transport.schema_quick import ABSENT, WireField, quick_dump, quick_load


@dataclass(frozen=True, slots=True)
class Appended:
    """Marks a field that came after the first version: it stays off the wire where it has its default."""


APPENDED: Final = Appended()


class Check(Protocol):
    """Both directions of one field."""

    def dump(self, value: Any) -> object:
        """Plain msgpack value of a field. Raises ProtocolError, as `load`."""

    def load(self, raw: object) -> Any:
        """Field value of a plain msgpack value. Raises ProtocolError, whose text begins after the name of the field."""


def _expected(what: str, came: object) -> ProtocolError:
    shown = repr(came)
    return ProtocolError(f": expected {what}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def _is_text(raw: object, limit_bytes: int) -> TypeGuard[str]:
    if not isinstance(raw, str):
        return False
    # Most texts are ASCII, which a string knows of itself.
    return len(raw) <= limit_bytes and (raw.isascii() or len(raw.encode("utf-8", "replace")) <= limit_bytes)


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `limit_bytes` of UTF-8, matching `pattern` when there is one."""

    limit_bytes: int
    pattern: re.Pattern[str] | None = None

    def load(self, raw: object) -> Any:
        if not _is_text(raw, self.limit_bytes):
            raise _expected(f"a string of at most {self.limit_bytes} bytes", raw)
        if self.pattern is not None and not self.pattern.fullmatch(raw):
            raise _expected(f"a string like {self.pattern.pattern}", raw)
        return raw

    dump = load


@dataclass(frozen=True, slots=True)
class Prose:
    """Text for people. Cut to size when sent; what a terminal would act on is replaced, whoever wrote it."""

    limit_bytes: int

    def dump(self, value: Any) -> object:
        if not isinstance(value, str):
            raise _expected("a string", value)
        cut = value.encode("utf-8", "replace")[: self.limit_bytes].decode("utf-8", "ignore")
        return self.load(cut)

    def load(self, raw: object) -> Any:
        if not _is_text(raw, self.limit_bytes):
            raise _expected(f"a string of at most {self.limit_bytes} bytes", raw)
        return raw if raw.isprintable() else "".join(c if c.isprintable() else " " for c in raw)


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer in low..high, both included."""

    low: int
    high: int

    def load(self, raw: object) -> Any:
        # bool is an int to Python, but not to any other implementation of the protocol.
        if type(raw) is not int or not self.low <= raw <= self.high:
            raise _expected(f"an integer in {self.low}..{self.high}", raw)
        return raw

    dump = load


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def load(self, raw: object) -> Any:
        if type(raw) is not bool:
            raise _expected("true or false", raw)
        return raw

    dump = load


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of `fewest`..`most` items; a tuple in Python."""

    item: Check
    most: int
    fewest: int = 0

    def dump(self, value: Any) -> object:
        return self._each(self.item.dump, value)

    def load(self, raw: object) -> Any:
        if type(raw) is list and self.fewest <= len(raw) <= self.most:
            load = self.item.load
            try:
                return tuple([load(item) for item in raw])
            except ProtocolError:
                pass  # what follows finds it again, and says where
        return tuple(self._each(self.item.load, raw))

    def _each(self, convert: Callable[[object], object], raw: object) -> list[object]:
        if not isinstance(raw, (list, tuple)) or not self.fewest <= len(raw) <= self.most:
            raise _expected(f"a list of {self.fewest}..{self.most} items", raw)
        converted: list[object] = []
        try:
            for item in raw:
                converted.append(convert(item))  # noqa: PERF401 - its length says where the error is
        except ProtocolError as exc:
            raise ProtocolError(f"[{len(converted)}]{exc}") from exc.__cause__
        return converted


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map of at most `most` entries with string keys."""

    key: Text
    item: Check
    most: int

    def dump(self, value: Any) -> object:
        return self._each(self.item.dump, value)

    def load(self, raw: object) -> Any:
        return self._each(self.item.load, raw)

    def _each(self, convert: Callable[[object], object], raw: object) -> dict[object, object]:
        if not isinstance(raw, Mapping) or len(raw) > self.most:
            raise _expected(f"a map of at most {self.most} entries", raw)
        converted: dict[object, object] = {}
        place = ""
        try:
            for key, item in raw.items():
                place = " key"
                checked = self.key.load(key)
                place = f"[{key!r}]"
                converted[checked] = convert(item)
        except ProtocolError as exc:
            raise ProtocolError(f"{place}{exc}") from exc.__cause__
        return converted


class Recurring:
    """What says the same in message after message; what it said last is not taken apart again.

    Only for lists and structs of strings: equal numbers may be of types that the protocol tells apart.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        # Pairs, so that channels of several threads can share this without a lock.
        self._dumped: tuple[object, object] = (None, None)
        self._loaded: tuple[object, object] = (None, None)

    def dump(self, value: Any) -> object:
        last, dumped = self._dumped
        if value is not last:
            dumped = self._check.dump(value)
            self._dumped = (value, dumped)
        return dumped

    def load(self, raw: object) -> Any:
        last, loaded = self._loaded
        if raw != last:
            loaded = self._check.load(raw)
            self._loaded = (raw, loaded)
        return loaded


class StructOf:
    """A map that is a dataclass: fields without a `Check` in their annotation stay off the wire.

    A missing key takes the field's default; an unknown key is ignored: that is how messages grow. A class may add
    `check_wire()` for rules that span fields.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self._check_wire: Callable[[Any], None] | None = getattr(cls, "check_wire", None)
        self._fields: list[WireField] = []
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            marks = getattr(hints[field.name], "__metadata__", ())
            checks = [mark for mark in marks if hasattr(mark, "load")]
            if checks:
                check, default = checks[0], _default_of(field)
                left_out = APPENDED in marks and default is not ABSENT
                shared = field.default is not dataclasses.MISSING
                # None as a default passes no check; it stands for a field that is not there.
                plain = "" if default is None else _plain(check)
                wire = WireField(field.name, plain, check.dump, check.load, default, shared, left_out)
                self._fields.append(wire)
        self._quick_dump = quick_dump(self._fields)
        self._quick_load = quick_load(cls, self._fields)

    def dump(self, value: Any) -> dict[str, object]:
        if type(value) is not self.cls:
            raise _expected(f"a {self.cls.__name__}", value)
        if self._check_wire is not None:
            self._check_wire(value)
        try:
            dumped = self._quick_dump(value)
        except ProtocolError:
            dumped = None
        return self._dump_slowly(value) if dumped is None else dumped

    def load(self, raw: object, **off_wire: object) -> Any:
        if not isinstance(raw, dict):
            raise _expected("a map", raw)
        try:
            loaded = self._quick_load(raw, off_wire)
        except ProtocolError:
            loaded = None
        if loaded is None:
            loaded = self._load_slowly(raw, off_wire)
        if self._check_wire is not None:
            self._check_wire(loaded)
        return loaded

    def _dump_slowly(self, value: Any) -> dict[str, object]:
        dumped: dict[str, object] = {}
        for field in self._fields:
            item = getattr(value, field.name)
            if not (field.left_out and item == field.default):
                dumped[field.name] = _at(f".{field.name}", field.dump, item)
        return dumped

    def _load_slowly(self, raw: dict[str, object], off_wire: dict[str, object]) -> Any:
        values = dict(off_wire)
        for field in self._fields:
            if field.name in raw:
                values[field.name] = _at(f".{field.name}", field.load, raw[field.name])
            elif field.default is ABSENT:
                raise ProtocolError(f".{field.name}: the field is missing and has no default")
        return self.cls(**values)


def _at(place: str, convert: Callable[[Any], object], item: object) -> object:
    try:
        return convert(item)
    except ProtocolError as exc:
        raise ProtocolError(f"{place}{exc}") from exc.__cause__


def _plain(check: Check) -> str:
    """The condition under which `check` lets a value pass unchanged; empty where it is not that simple."""
    match check:
        case Whole(low, high):
            return f"type({{0}}) is int and {low} <= {{0}} <= {high}"
        case Text(limit_bytes, None):
            return f"type({{0}}) is str and len({{0}}) <= {limit_bytes} and {{0}}.isascii()"
        case _:
            return ""


def _default_of(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ABSENT if field.default is dataclasses.MISSING else field.default
