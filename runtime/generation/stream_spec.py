"""What an Open says of the stream that it asks for: its `generation` text, to and from a value."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flagsplit.errors import ConfigError
from flagsplit.runtime.generation.options import GenerationOptions, options_from_json
from flagsplit.transport.messages import MAX_GENERATION_BYTES

_MOST: Final = 1 << 20
_MAX_INPUT_S: Final = 86_400.0
_SHOWN: Final = 60


@dataclass(frozen=True)
class StreamSpec:
    """A stream that is asked for.

    Attributes:
        options: of the generation.
        stream: the client's own name for it, at most 64 bytes.
        loop: which loop of the bundle, at most 128 bytes; "" where there is one.
        delivered: how many of the tokens that come with it were generated: they are not said again.
        position: with rows, the position of the first of them; None without rows.
        kept: whether its tensors are not sent again, because the receiver may have kept what it made of them.
        input_s: seconds of input; 0 is not known.
    """

    options: GenerationOptions = field(default_factory=GenerationOptions)
    stream: str = ""
    loop: str = ""
    delivered: int = 0
    position: int | None = None
    kept: bool = False
    input_s: float = 0.0

    def to_text(self) -> str:
        """As JSON, without what has its default.

        Raises:
            ConfigError: it gets longer than a message may carry.
        """
        said: dict[str, object] = {
            "stream": self.stream,
            "loop": self.loop,
            "delivered": self.delivered,
            "kept": self.kept,
            "input_s": self.input_s,
        }
        data = {name: value for name, value in said.items() if value}
        if self.position is not None:
            data["from"] = self.position
        # Never empty: an Open without a text asks for tensors.
        text = json.dumps(data | self.options.to_json(), separators=(",", ":"))
        if len(text) > MAX_GENERATION_BYTES:
            raise ConfigError(
                f"the options of a stream take {len(text)} bytes, expected at most {MAX_GENERATION_BYTES}; "
                "name fewer tokens to stop at or to suppress"
            )
        return text


def parse_spec(text: str) -> StreamSpec:
    """The stream that a text asks for.

    Raises:
        ConfigError: it is no JSON object, or a value is unknown, of the wrong type or out of its limits.
    """
    data = _object(text)
    own = {name: read(name, data.pop(name)) for name, read in _READERS.items() if name in data}
    position = own.pop("from", None)
    return StreamSpec(options_from_json(data), position=position, **own)


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"generation: expected a JSON object, came {_shown(text)}: {_shown(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"generation: expected a JSON object, came {_shown(text)}")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _text(limit_bytes: int) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > limit_bytes:
            raise ConfigError(f"{name}: expected a string of at most {limit_bytes} bytes, came {_shown(value)}")
        return value

    return read


def _natural(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ConfigError(f"{name}: expected a whole number in 0..{_MOST}, came {_shown(value)}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected true or false, came {_shown(value)}")
    return value


def _seconds(name: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MAX_INPUT_S:  # type: ignore[operator]
        raise ConfigError(f"{name}: expected 0 to {_MAX_INPUT_S:g} seconds, came {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


_READERS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "stream": _text(64),
    "loop": _text(128),
    "delivered": _natural,
    "from": _natural,
    "kept": _flag,
    "input_s": _seconds,
}


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
