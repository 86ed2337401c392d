"""The fields of a request, read with their types and limits; one that nobody asked for is an error, as at OpenAI."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flagsplit.apps.decoder_service.gateway_errors import ApiError


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "expected a JSON object in the body, came something else", "bad_input") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"expected a JSON object in the body, came {type(found).__name__}", "bad_input")
    try:
        if b"\\ud" in body.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "expected texts of whole characters, came one with half of a pair", "bad_input") from None
    return found


class Fields:
    """Takes the fields of a request one by one; null is as good as absent.

    Args:
        data: JSON data or, where all values are texts, those of a form.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in data.items() if value is not None}

    def text(self, name: str, default: str = "", *, longest: int = 1 << 20) -> str:
        """A text."""
        value = self._left.pop(name, default)
        if not isinstance(value, str) or len(value) > longest:
            raise wrong(name, f"a text of at most {longest} characters", value)
        return value

    def choice(self, name: str, among: Iterable[str], default: str) -> str:
        """One of some texts."""
        value = self._left.pop(name, default)
        listed = tuple(among)
        if value not in listed:
            raise wrong(name, f"one of {', '.join(listed)}", value)
        return str(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self._parsed(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._parsed(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def flag(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self._left.pop(name, False)
        texts = {"true": True, "1": True, "false": False, "0": False, "": False}
        if isinstance(value, str) and value.lower() in texts:
            return texts[value.lower()]
        if not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """One text, or a list of them."""
        value = self._left.pop(name, ())
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or len(listed) > most:
            raise wrong(name, f"a text, or a list of at most {most}", value)
        if any(not isinstance(each, str) or not 0 < len(each) <= longest for each in listed):
            raise wrong(name, f"texts of 1 to {longest} characters", value)
        return tuple(listed)

    def raw(self, name: str) -> Any:
        """The value as it came; None if it did not."""
        return self._left.pop(name, None)

    def peek(self, name: str) -> Any:
        """The value as it came, which is left to be taken; None if it did not come."""
        return self._left.get(name)

    def refuse(self, name: str, neutral: Iterable[Any], instead: str) -> None:
        """A field that is known elsewhere but not here: only values that change nothing are taken."""
        value = self._left.pop(name, None)
        if value is not None and value not in tuple(neutral):
            raise ApiError(400, f"{name} is not supported: {instead}", "unsupported_parameter", name)

    def end(self) -> None:
        """Everything is taken.

        Raises:
            ApiError: something is left that nobody knows.
        """
        for name in self._left:
            raise ApiError(
                400, f"there is no field {name!r:.80}; the docs list what there is", "unknown_parameter", name[:80]
            )

    def _parsed(self, name: str, default: float) -> Any:
        value = self._left.pop(name, default)
        if isinstance(value, str) and len(value) <= 40:
            try:
                value = json.loads(value)
            except ValueError:
                return value
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return value


def wrong(name: str, expected: str, came: Any) -> ApiError:
    """A field has a value that cannot be."""
    return ApiError(400, f"{name}: expected {expected}, came {came!r:.60}", "invalid_value", name)
