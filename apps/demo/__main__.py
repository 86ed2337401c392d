"""`python -m flagsplit.apps.demo`."""

import sys

from flagsplit.apps.demo.story import tell
from flagsplit.errors import FlagsplitError

if __name__ == "__main__":
    try:
        tell()
    except FlagsplitError as error:
        sys.exit(f"flagsplit demo: {error}")
