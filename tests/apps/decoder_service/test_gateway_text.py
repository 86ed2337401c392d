"""Of a stop string nothing is seen, however the text that has it comes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.decoder_service.gateway_text import StopStrings


@given(
    st.text(alphabet="ab", max_size=20),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text is cut into pieces. The first is the one that is complete first, as a reader sees it."""
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    watch = StopStrings(stops)
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    shown = [watch.push(text[low:high]) for low, high in pairwise(places)]
    if not ends:
        assert not watch.found
        assert "".join(shown) + watch.finish() == text
        return
    assert watch.found
    first = next(high for high in places if high >= ends[0])
    least = min(text[:first].find(stop) for stop in stops if stop in text[:first])
    assert "".join(shown) == text[:least]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    watch = StopStrings(["\n\nUser:"])
    assert [watch.push(piece) for piece in ("Hello\n", "\nUse", "ful", "\n\nUser:", "more")] == [
        "Hello",
        "",
        "\n\nUseful",
        "",
        "",
    ]
    assert watch.found


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_without_a_stop_string_nothing_is_held_back(stops: list[str]) -> None:
    watch = StopStrings(stops)
    assert watch.push("abc") == "abc"
    assert not watch.found
