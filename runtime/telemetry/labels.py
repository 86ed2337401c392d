"""Names that come from outside, made fit for labels of metrics: few, short and printable.

Every label value is a time series that lives as long as the process, so a stranger must not be able to make them.
"""

from collections.abc import Iterable
from typing import Final

OTHER: Final = "other"
MAX_VALUES: Final = 32
_MAX_LENGTH = 80


class BoundedLabel:
    """Values of one label: those known at the start, then whatever comes first, up to `most` in all.

    Args:
        known: values that always count.
        most: how many there may be; whatever comes later is "other".
    """

    def __init__(self, known: Iterable[str] = (), most: int = MAX_VALUES) -> None:
        self._most = most
        self._values: dict[str, str] = {}
        for value in known:
            self(value)

    def __call__(self, value: str) -> str:
        """The label value that stands for a name."""
        found = self._values.get(value)
        if found is None:
            if len(self._values) >= self._most:
                return OTHER
            found = self._values[value] = one_line(value)[:_MAX_LENGTH]
        return found


def one_line(text: str) -> str:
    """A text with everything that is not printable written as an escape, so that it stays on its line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
