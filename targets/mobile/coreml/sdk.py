"""coremltools, imported when it is needed and kept quiet."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flagsplit.errors import ConfigError

EXTRA = "coreml"


def import_sdk() -> Any:
    """The module `coremltools`.

    Raises:
        ConfigError: it is not installed.
    """
    with quiet():
        try:
            import coremltools
        except ImportError:
            raise ConfigError(
                f"the coreml target needs coremltools, which is not installed; pip install 'flagsplit[{EXTRA}]'"
            ) from None
    return coremltools


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what coremltools logs off the terminal: it speaks of its own inner steps."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
