"""What `flagsplit top` shows: the `/stats` pages of sessions and workers, fetched, checked and laid out.

    fetch.py   asks the pages          model.py   what is taken from them        units.py   figures as people read them
    tables.py  the same tables for a terminal and for the live view       live.py   the live view, which needs textual

The schema of a page is in `flagsplit.runtime.telemetry.snapshot`.
"""
