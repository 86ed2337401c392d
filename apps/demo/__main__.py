"""`python -m flagsplit.apps.demo`."""

import argparse
import sys

from flagsplit.apps.cli.options import choices, targets
from flagsplit.apps.demo.story import tell
from flagsplit.errors import FlagsplitError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="flagsplit demo", description="Read a scanned page through three tiers.")
    parser.add_argument("--phone-target", default="", help="what the phone runs, such as coreml, litert or qnn")
    parser.add_argument("--target", action="append", metavar="TIER=NAME", help="what another tier runs: cloud=cuda")
    parser.add_argument("--choice", action="append", metavar="TARGET.NAME=VALUE", help="such as litert.precision=int8")
    given = parser.parse_args()
    phone = {"phone": given.phone_target} if given.phone_target else {}
    try:
        tell({**phone, **{tier: names[0] for tier, names in targets(given.target).items()}}, choices(given.choice))
    except FlagsplitError as error:
        sys.exit(f"flagsplit demo: {error}")
