"""The protobuf classes of the Core ML model format: nothing else of coremltools is used here."""

import contextlib
import io
import logging
from functools import cache
from typing import Any

from flagsplit.errors import ConfigError


@cache
def pb() -> Any:
    """The package that holds `Model_pb2` and `MIL_pb2`.

    Raises:
        ConfigError: coremltools is not installed.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    # Off macOS it warns about each native library that it has not got; none is needed to read a file.
    with contextlib.redirect_stderr(io.StringIO()):
        logger.setLevel(logging.CRITICAL)
        try:
            from coremltools import proto
            from coremltools.proto import MIL_pb2, Model_pb2  # noqa: F401 makes them attributes of the package
        except ImportError as error:
            raise ConfigError(
                "reading a Core ML package needs coremltools, which is not installed; pip install 'flagsplit[coreml]'"
            ) from error
        finally:
            logger.setLevel(level)
    return proto
