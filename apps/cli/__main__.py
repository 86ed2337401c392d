"""`python -m flagsplit.apps.cli`."""

from flagsplit.apps.cli.main import main

if __name__ == "__main__":
    main()
