"""`python -m flagsplit.apps.demo`."""

import argparse
import sys

from flagsplit.apps.demo.story import tell
from flagsplit.errors import FlagsplitError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="flagsplit demo", description="Read a scanned page through three tiers.")
    parser.add_argument("--phone-target", default="", help="what the phone runs, such as coreml, litert or qnn")
    try:
        tell(parser.parse_args().phone_target)
    except FlagsplitError as error:
        sys.exit(f"flagsplit demo: {error}")
