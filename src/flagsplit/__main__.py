"""`python -m flagsplit`, the same as the command `flagsplit`."""

from flagsplit.apps.cli.main import main

if __name__ == "__main__":
    main()
