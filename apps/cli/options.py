"""Reading `NAME=VALUE` options: devices, links, addresses, sizes and shapes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flagsplit.errors import ConfigError
from flagsplit.splitter.sla import SLA, parse_sla


def pairs(option: str, given: Iterable[str] | None, *, commas: bool = False) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping.

    Args:
        option: for messages.
        given: the texts; with `commas`, each may hold several.
        commas: whether a comma separates pairs.

    Raises:
        ConfigError: a text is no pair, or a name stands twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        for part in text.split(",") if commas else [text]:
            name, equals, value = part.strip().partition("=")
            if not equals or not name or not value:
                raise ConfigError(f"{option} expects NAME=VALUE, came {part!r}")
            if name in found:
                raise ConfigError(f"{option} names {name!r} twice; give it once")
            found[name] = value
    return found


def changes(option: str, given: Iterable[str] | None) -> list[tuple[str, str]]:
    """`NAME=VALUE` texts in their order; a name may stand more than once.

    Raises:
        ConfigError: a text is no pair.
    """
    return [pair for text in given or () for pair in pairs(option, [text]).items()]


def targets(given: Iterable[str] | None) -> dict[str, tuple[str, ...]]:
    """`TIER=NAME,NAME` texts as a mapping to names."""
    return {
        tier: tuple(name.strip() for name in text.split(",") if name.strip())
        for tier, text in pairs("--target", given).items()
    }


def choices(given: Iterable[str] | None) -> dict[str, dict[str, str]]:
    """`TARGET.NAME=VALUE` texts as a mapping of mappings."""
    found: dict[str, dict[str, str]] = {}
    for name, value in pairs("--choice", given).items():
        target, dot, what = name.partition(".")
        if not dot or not target or not what:
            raise ConfigError(f"--choice expects TARGET.NAME=VALUE, came {name}={value}")
        found.setdefault(target, {})[what] = value
    return found


def sizes(option: str, given: Iterable[str] | None) -> dict[str, int]:
    """`NAME=SIZE` texts as a mapping to positive whole numbers."""
    return {name: _size(option, name, text) for name, text in pairs(option, given).items()}


def factors(option: str, given: Iterable[str] | None) -> dict[str, float]:
    """`NAME=NUMBER` texts as a mapping; what the numbers may be is for others to say."""
    found = pairs(option, given)
    try:
        return {name: float(text) for name, text in found.items()}
    except ValueError:
        raise ConfigError(f"{option} expects NAME=NUMBER, came {', '.join(given or ())}") from None


@dataclass(frozen=True)
class OpenDims:
    """What was said of open dimensions, by symbol.

    Attributes:
        nominal: sizes to plan for; of a range or a list the greatest unless another was named.
        ranges: least and greatest size.
        listed: the only sizes.
    """

    nominal: dict[str, int]
    ranges: dict[str, tuple[int, int]]
    listed: dict[str, tuple[int, ...]]


def open_dims(option: str, given: Iterable[str] | None) -> OpenDims:
    """`NAME=SIZE`, `NAME=LOW..HIGH` and `NAME=SIZE,SIZE` texts; `@SIZE` after the latter two is the nominal size.

    Raises:
        ConfigError: a text is none of these.
    """
    found = OpenDims({}, {}, {})
    for name, text in pairs(option, given).items():
        several, at, nominal = text.partition("@")
        low, dots, high = several.partition("..")
        if dots:
            ends = _size(option, name, low), _size(option, name, high)
            if ends[0] > ends[1]:
                raise ConfigError(f"{option} {name} expects LOW..HIGH, came {text!r}; turn them round")
            found.ranges[name] = ends
            sizes: tuple[int, ...] = ends
        else:
            sizes = tuple(sorted({_size(option, name, part) for part in several.split(",")}))
            if "," in several:
                found.listed[name] = sizes
            elif at:
                raise ConfigError(f"{option} {name} expects a range or a list before @, came {text!r}")
        found.nominal[name] = _size(option, name, nominal) if at else sizes[-1]
    return found


def shapes(option: str, given: Iterable[str] | None) -> dict[str, tuple[int, ...]]:
    """`INPUT=1,3,48,320` texts as a mapping to shapes; `x` may stand for a comma."""
    return {
        name: tuple(_size(option, name, part) for part in text.replace("x", ",").split(","))
        for name, text in pairs(option, given).items()
    }


def _size(option: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1 or len(text) > 12:
        raise ConfigError(f"{option} {name} expects whole numbers of at least 1, came {text!r}")
    return int(text)


def names(option: str, text: str) -> list[str]:
    """A comma-separated list of different names."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found or len(set(found)) != len(found):
        raise ConfigError(f"{option} expects different names with commas between them, came {text!r}")
    return found


def sla_file(path: Path | None) -> SLA | None:
    """The SLA in a file, if there is one."""
    if path is None:
        return None
    try:
        return parse_sla(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the SLA {path}: {error.strerror}") from None
