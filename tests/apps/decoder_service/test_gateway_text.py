"""Tokens to text: the pieces put together are the whole, and of a stop string nothing is seen."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.apps.decoder_service.rote import ByteTokenizer

from flagsplit.apps.decoder_service.gateway_text import StopStrings, TextOf


class Words:
    """Like a SentencePiece tokenizer: a word has its space in front, except at the beginning of a text."""

    def encode(self, text: str) -> Sequence[int]:
        return tuple(map(int, text.split()))

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


@given(st.text(alphabet="aé€😀 ", max_size=30), st.integers(1, 5))
def test_pieces_are_the_whole_text(text: str, step: int) -> None:
    tokens = text.encode()
    writer = TextOf(ByteTokenizer())
    pieces = [writer.push(tokens[place : place + step]) for place in range(0, len(tokens), step)]
    assert "".join([*pieces, writer.finish()]) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_the_space_before_a_word_is_kept() -> None:
    writer = TextOf(Words(), before=(7, 8))
    assert [writer.push((9,)), writer.push((10, 11)), writer.finish()] == [" 9", " 10 11", ""]


def test_bytes_that_become_no_character_are_not_waited_for() -> None:
    writer = TextOf(ByteTokenizer())
    pieces = [writer.push((0xFF,)) for _ in range(4)]
    assert pieces == ["", "", "", "\ufffd" * 4]
    assert writer.push(b"ok") == "ok"


def test_half_a_character_is_shown_at_the_end() -> None:
    writer = TextOf(ByteTokenizer())
    assert writer.push("é".encode()[:1]) == ""
    assert writer.finish() == "\ufffd"


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
