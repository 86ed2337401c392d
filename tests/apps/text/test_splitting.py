import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagsplit.apps.text.splitting import single_digits, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("don't we'll I'd've DON'T", ["don", "'t", " we", "'ll", " I", "'d", "'ve", " DON", "'", "T"]),
        (" 's ''s", [" '", "s", " ''", "s"]),
        ("a  b", ["a", " ", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a \n", ["a", " \n"]),
        (" \tb ", [" ", "\t", "b", " "]),
        ("x=12.5km²", ["x", "=", "12", ".", "5", "km", "²"]),
        # A combining mark is neither letter nor number; of spaces only U+0020 goes with the word.
        ("e\u0301a\u2003b", ["e", "\u0301", "a", "\u2003", "b"]),
        # A separator that Python takes for a space and Unicode does not.
        ("a\x1cb \x1c", ["a", "\x1c", "b", " \x1c"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert list(words(text)) == expected


def test_single_digits() -> None:
    assert list(single_digits("ab 12²x")) == ["ab ", "1", "2", "²", "x"]
    assert list(single_digits("")) == []


@given(st.text())
def test_nothing_is_lost(text: str) -> None:
    assert "".join(words(text)) == text
    assert "".join(single_digits(text)) == text
    assert all(words(text))
