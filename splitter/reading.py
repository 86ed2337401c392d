"""Strict reading of plain JSON data that may come from someone else's bundle.

Every helper names the place of what is wrong and raises BundleError; none trusts a type, a length or a range.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from flagsplit.errors import BundleError


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: expected JSON: {error}") from None
    return as_object(data, where)


def as_object(data: object, where: str) -> dict[str, Any]:
    """`data`, which must be an object."""
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected an object, got {type(data).__name__}")
    return data


def only_keys(data: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    """Refuse missing and unknown keys."""
    if data.keys() != keys:
        odd = ", ".join(sorted(set(data) ^ keys))
        raise BundleError(f"{where}: missing or unknown: {odd}")


def text(data: Mapping[str, Any], key: str, where: str) -> str:
    """A string."""
    value = data[key]
    if not isinstance(value, str):
        raise BundleError(f"{where}.{key}: expected a string, got {type(value).__name__}")
    return value


def array(data: Mapping[str, Any], key: str, where: str, count: int | None = None) -> list[Any]:
    """A list, of `count` items if given."""
    value = data[key]
    if not isinstance(value, list):
        raise BundleError(f"{where}.{key}: expected a list, got {type(value).__name__}")
    if count is not None and len(value) != count:
        raise BundleError(f"{where}.{key}: expected {count} items, got {len(value)}")
    return value


def texts(data: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of strings."""
    items = array(data, key, where)
    if not all(isinstance(item, str) for item in items):
        raise BundleError(f"{where}.{key}: expected strings")
    return tuple(items)


def number(value: object, where: str, *, signed: bool = False) -> float:
    """A finite number, not below zero unless `signed`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BundleError(f"{where}: expected a number, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result) or (result < 0 and not signed):
        raise BundleError(f"{where}: expected a finite number{'' if signed else ' of 0 or more'}, got {value}")
    return result


def numbers(data: Mapping[str, Any], key: str, where: str, count: int) -> tuple[float, ...]:
    """`count` numbers of 0 or more."""
    return tuple(number(item, f"{where}.{key}") for item in array(data, key, where, count))


def integer(value: object, where: str, limit: int) -> int:
    """A whole number from 0 up to but not including `limit`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise BundleError(f"{where}: expected a whole number from 0 to {limit - 1}, got {value!r:.40}")
    return value


def integers(data: Mapping[str, Any], key: str, where: str, limit: int) -> tuple[int, ...]:
    """A list of whole numbers below `limit`."""
    return tuple(integer(item, f"{where}.{key}", limit) for item in array(data, key, where))


def dump(data: Mapping[str, Any]) -> str:
    """Deterministic JSON text: sorted keys, no spaces, floats as their shortest exact form."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
