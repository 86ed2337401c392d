"""What the package offers: every name exists, and every message that a user sends is among them."""

import flagsplit.transport as facade
from flagsplit.transport.messages import MESSAGE_TYPES, Attach


def test_all_is_sorted_complete_and_real() -> None:
    assert len(set(facade.__all__)) == len(facade.__all__)
    for name in facade.__all__:
        assert getattr(facade, name) is not None
    messages = {cls.__name__ for cls in MESSAGE_TYPES.values() if cls is not Attach}
    assert messages <= set(facade.__all__)
    modules = {name for name, value in vars(facade).items() if type(value).__name__ == "module"}
    public = {name for name in vars(facade) if not name.startswith("_")} - modules
    assert public == set(facade.__all__)
