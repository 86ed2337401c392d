"""What the splitter's tests share."""

import pytest

from flagsplit.splitter.devices import Catalogue, load_catalogue


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue()
