"""Say in one line what is wrong with this Python, before pip says it in a hundred. Runs on any Python 3."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one shall learn it from us
    version = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"flagsplit needs Python 3.11 or newer, {sys.executable} is {version}: run make PYTHON=python3.11")
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit("this Python has no venv module; on Debian and Ubuntu install the package python3-venv")
