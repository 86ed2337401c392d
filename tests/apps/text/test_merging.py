from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.text.merging import merge_pairs

RANKS = {("a", "b"): 2, ("b", "c"): 1, ("ab", "c"): 0, ("a", "a"): 3, ("aa", "aa"): 4, ("a", "bc"): 5, ("c", "a"): 2}


def _plainly(symbols: list[str]) -> list[str]:
    """The definition: the leftmost of the lowest ranks, over and over."""
    symbols = list(symbols)
    while True:
        ranked = [(RANKS[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in RANKS]
        if not ranked:
            return symbols
        _, at = min(ranked)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(st.lists(st.sampled_from("abc"), max_size=24))
def test_merging_is_what_its_definition_says(symbols: list[str]) -> None:
    assert merge_pairs(symbols, lambda left, right: RANKS.get((left, right))) == _plainly(symbols)


def test_a_word_without_end_takes_no_time_squared() -> None:
    """Going through all pairs for every merge would take minutes here."""
    assert merge_pairs("a" * 40_000, lambda left, right: RANKS.get((left, right))) == ["aaaa"] * 10_000
