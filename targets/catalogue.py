"""The targets that exist, by name. Each is imported only when it is asked for."""

from collections.abc import Callable

from flagsplit.errors import PolicyError
from flagsplit.targets.interface import Target


def _ort() -> Target:
    from flagsplit.targets.cloud.ort import OrtTarget

    return OrtTarget()


TARGETS: dict[str, Callable[[], Target]] = {"ort": _ort}
"""Lazy factories; a name that is not here is not a target."""


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        PolicyError: there is none; the message lists those that exist.
    """
    factory = TARGETS.get(name)
    if factory is None:
        raise PolicyError(f"expected a target ({', '.join(sorted(TARGETS))}), came {name!r}")
    return factory()
