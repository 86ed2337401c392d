"""Naming a target: one of the catalogue, or `module:factory` for any other."""

import sys
from collections.abc import Callable
from importlib import import_module

from flagsplit.errors import ConfigError
from flagsplit.targets.catalogue import get_target
from flagsplit.targets.interface import Target

_METHODS = ("describe", "supports", "compile", "load")


def target_named(name: str) -> Target:
    """The target of that name.

    Args:
        name: of the catalogue; or `module:factory`, where calling `factory` without arguments gives the target.

    Raises:
        PolicyError: the catalogue has none of that name.
        ConfigError: there is no such module or factory, or what it gives is no target.
    """
    if ":" not in name:
        return get_target(name)
    module, _, factory = name.partition(":")
    try:
        made = getattr(import_module(module), factory)()
    except Exception as error:
        raise ConfigError(
            f"expected module:factory whose call gives a target, {name!r} fails: {type(error).__name__}: {error}"
        ) from error
    missing = [method for method in _METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise ConfigError(f"what {name!r} gives is no target: it has no {', '.join(missing)}")
    target: Target = made
    return target


def name_of(factory: Callable[[], Target]) -> str:
    """`module:factory` of a function or class, by which another process finds it; "" if it cannot."""
    module, name = getattr(factory, "__module__", "") or "", getattr(factory, "__qualname__", "") or ""
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}" if module != "__main__" and found is factory else ""
