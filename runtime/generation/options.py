"""What a client chooses for one stream of tokens, with limits, to JSON data and back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from flagsplit.errors import ConfigError

_MAX_LISTED = 1024
"""Tokens in a list: Whisper suppresses 90."""
_MAX_SEED = (1 << 63) - 1
_MAX_NAME = 64


@dataclass(frozen=True)
class GenerationOptions:
    """Choices for one stream.

    Attributes:
        max_tokens: how many tokens to generate at most, those of earlier attempts counted.
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_k: draw among that many likeliest tokens; 0 is all.
        top_p: draw among the likeliest tokens that have this much probability together; 1 is all.
        seed: what is drawn depends on it and on the number of the token in the stream, on nothing else.
        beams: 1 generates token by token; more searches that many candidates at once, and gives all tokens at the end.
        length_penalty: candidates of a beam search are compared by log-probability / length ** length_penalty.
        stop: tokens that end the stream, beside the program's own; not given out.
        suppress: tokens that are never taken, beside the program's own.
        constraint: name of the rules that say which tokens may follow those so far, such as "timestamps"; see
            `flagsplit.runtime.generation.constraints`. "" is none.
        logprobs: whether the log-probability of each token is told, and at first how likely it is that nobody speaks.
        deadline_s: seconds from the asking until which the stream must have ended; 0 is no limit.

    Raises:
        ConfigError: a value is out of its limits.
    """

    max_tokens: int = 448
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    constraint: str = ""
    logprobs: bool = False
    deadline_s: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:  # an integer may be too large for a float, so it is compared as it is
                raise ConfigError(f"{name}: expected {low} to {high}, came {_shown(value)}")
        if self.top_p <= 0:
            raise ConfigError(f"top_p: expected more than 0, up to 1, came {self.top_p}")
        if self.beams > 1 and self.temperature > 0:
            raise ConfigError(f"beams: a search for {self.beams} candidates draws nothing; set temperature to 0")
        if len(self.constraint) > _MAX_NAME:
            raise ConfigError(f"constraint: expected a name, came {_shown(self.constraint)}")
        for name in ("stop", "suppress"):
            listed = getattr(self, name)
            if len(listed) > _MAX_LISTED:
                raise ConfigError(f"{name}: expected at most {_MAX_LISTED} tokens, came {len(listed)}")
            if any(not 0 <= token < 1 << 31 for token in listed):
                odd = next(token for token in listed if not 0 <= token < 1 << 31)
                raise ConfigError(f"{name}: expected token ids of 0 or more, came {_shown(odd)}")

    def to_json(self) -> dict[str, Any]:
        """As JSON data: the options that are not the default."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            each.name: list(found[each.name]) if isinstance(found[each.name], tuple) else found[each.name]
            for each in fields(self)
            if found[each.name] != each.default
        }


_LIMITS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1 << 17),
    "temperature": (0, 100),
    "top_k": (0, 1 << 24),
    "top_p": (0, 1),
    "seed": (0, _MAX_SEED),
    "beams": (1, 16),
    "length_penalty": (-10, 10),
    "deadline_s": (0, 86_400),
}


def options_from_json(data: Mapping[str, Any]) -> GenerationOptions:
    """Read JSON data; what is not given is the default.

    Args:
        data: a JSON object that has nothing but options.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type or out of its limits.
    """
    known = {each.name: each.default for each in fields(GenerationOptions)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"no option of generation is called {_shown(unknown[0])}; there are {', '.join(known)}")
    values: dict[str, Any] = {name: _read(name, known[name], value) for name, value in data.items()}
    return GenerationOptions(**values)


def _read(name: str, default: object, value: object) -> int | float | str | tuple[int, ...]:
    if isinstance(default, str | bool):
        if type(value) is not type(default):
            wanted = "true or false" if isinstance(default, bool) else "a string"
            raise ConfigError(f"{name}: expected {wanted}, came {_shown(value)}")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or not all(_is_int(each) for each in value):
            raise ConfigError(f"{name}: expected a list of token ids, came {_shown(value)}")
        return tuple(value)
    if isinstance(default, int):
        if not _is_int(value):
            raise ConfigError(f"{name}: expected a whole number, came {_shown(value)}")
        return int(value)  # type: ignore[call-overload, no-any-return]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e300:
        raise ConfigError(f"{name}: expected a number, came {_shown(value)}")
    return float(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return repr(value)[:60]
