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
    spans = [(end, end - len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    watch = StopStrings(stops)
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    shown = [watch.push(text[low:high]) for low, high in pairwise(places)]
    if not spans:
        assert not watch.found
        assert "".join(shown) + watch.finish() == text
        return
    assert watch.found
    _, start = min(spans)
    assert "".join(shown) == text[:start]


@pytest.mark.parametrize("pieces", [["xabcd"], ["xab", "cd"], ["xabc", "d"], list("xabcd")])
def test_of_stop_strings_that_overlap_the_one_that_is_complete_first_counts(pieces: list[str]) -> None:
    watch = StopStrings(["abcd", "bc"])
    assert "".join(watch.push(piece) for piece in pieces) == "xa"
    assert watch.found


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
