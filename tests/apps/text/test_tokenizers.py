import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.apps.text.small import MERGES, SPECIAL, tokenizer_json
from tests.flagir.programs.weights import files

from flagsplit.apps import zoo
from flagsplit.apps.text import Message, Tokenizer, chat_tokens, instruction_tokens, open_tokenizer
from flagsplit.errors import ConfigError, FlagsplitError, InputError, ModelError, PeerError

SMALL = open_tokenizer("tokenizer.json", tokenizer_json())


def _piece(data: bytes) -> bytes:
    length = len(data)
    return bytes([length]) + data if length < 128 else bytes([128 + length % 128, length // 128]) + data


def _pieces(*more: str) -> bytes:
    head = [b"<unk>", b"<s>", b"</s>", *(bytes([each]) for each in range(256))]
    return b"".join(map(_piece, [*head, *(each.encode() for each in more), b"<<ST_0>>"]))


LONG = "x" * 300
PIECES = open_tokenizer("moonshine", _pieces("▁h", "ll", "e", "l", "o", "h", "▁", "ello", "▁hello", "llo", LONG))


@given(st.text())
def test_text_comes_back(text: str) -> None:
    for tokenizer in (SMALL, PIECES):
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " " if tokenizer is PIECES else "▁")


@given(st.lists(st.integers(0, 300)), st.integers(1, 5))
def test_a_stream_gives_what_the_whole_gives(tokens: list[int], at_once: int) -> None:
    for tokenizer in (SMALL, PIECES):
        stream = tokenizer.decode_stream()
        came = [stream.feed(tokens[at : at + at_once]) for at in range(0, len(tokens), at_once)]
        assert "".join(came) + stream.finish() == tokenizer.decode(tokens)


@pytest.mark.parametrize("tokenizer", [SMALL, PIECES], ids=["byte-level", "pieces"])
def test_a_stream_never_gives_half_a_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.decode_stream()
    came = [stream.feed([token]) for token in tokenizer.encode("x👩")]
    assert [each for each in came if each] == ["x", "👩"]
    half = tokenizer.encode("👩")[-4:-1]
    assert stream.feed(half) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_merges_in_order() -> None:
    names = {token: name for name, token in json.loads(tokenizer_json())["model"]["vocab"].items()}
    assert [names[each] for each in SMALL.encode("hello world hé")] == ["hello", "Ġw", "or", "l", "d", "Ġ", "h", "Ã©"]


def test_pieces_of_lower_number_are_merged_first() -> None:
    assert [PIECES.piece(each) for each in PIECES.encode("hello ll")] == [b" hello", b" ", b"ll"]
    # "lo" comes before "ll", so there is no "ll" left to become "hell".
    other = open_tokenizer("moonshine", _pieces(*"▁helo", "lo", "ll", "he", "hell"))
    assert [other.piece(each) for each in other.encode("hello")] == [b" ", b"he", b"l", b"lo"]
    assert PIECES.decode(PIECES.encode(LONG)) == LONG
    assert PIECES.special == {"<unk>": 0, "<s>": 1, "</s>": 2, "<<ST_0>>": 270}


def test_the_space_before_a_text_goes_once() -> None:
    tokens = PIECES.encode("hello  hello")
    assert PIECES.decode(tokens) == "hello  hello"
    stream = PIECES.decode_stream()
    assert [stream.feed([1]), stream.feed([]), *(stream.feed([each]) for each in PIECES.encode("h h"))][2:] == [
        "h",
        " h",
    ]


def test_special_tokens_have_no_text_and_are_not_read_from_text() -> None:
    for text, token in SMALL.special.items():
        assert text in SPECIAL
        assert SMALL.decode([token]) == ""
        assert token not in SMALL.encode(text)
        assert SMALL.decode(SMALL.encode(text)) == text
    # Timestamps, say, that a model has beyond its vocabulary.
    assert SMALL.decode([99_999]) == ""
    with pytest.raises(InputError, match="0 or more, came -1"):
        SMALL.decode([-1])


def test_half_a_surrogate_pair_is_no_crash() -> None:
    assert SMALL.decode(SMALL.encode("a\ud83d")) == "a?"
    assert PIECES.decode(PIECES.encode("a\ud83d")) == "a?"


def test_other_ways_that_a_file_may_have() -> None:
    pairs = tokenizer_json(merges=[each.split(" ") for each in MERGES])
    assert open_tokenizer("tokenizer.json", pairs).encode("hello") == SMALL.encode("hello")
    space = {"type": "ByteLevel", "add_prefix_space": True}
    spaced = open_tokenizer("tokenizer.json", tokenizer_json(pre_tokenizer=space))
    assert spaced.decode(spaced.encode("hé")) == " hé"
    whole = open_tokenizer("tokenizer.json", tokenizer_json(merges=[], ignore_merges=True))
    assert whole.encode("hello") == SMALL.encode("hello")
    uncut = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert open_tokenizer("tokenizer.json", tokenizer_json(pre_tokenizer=uncut)).decode(SMALL.encode("a b")) == "a b"
    plain = [{"id": 7, "content": "<é>", "special": False}]
    assert open_tokenizer("tokenizer.json", tokenizer_json(added_tokens=plain)).decode([7]) == "<é>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "WordPiece"}, "it is of another kind"),
        ({"normalizer": {"type": "NFC"}}, "it is of another kind"),
        ({"byte_fallback": True}, "byte-level encoding"),
        ({"pre_tokenizer": None}, "words cut as GPT-2 does it"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}]}}, "words cut as GPT-2"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "words cut as GPT-2"),
        ({"vocab": {}}, "a vocabulary of at most"),
        ({"vocab": {"a": -1}}, "'a' to be a number below 4000000, came -1"),
        ({"vocab": {"a": "b"}}, "'a' to be a number below 4000000, came b"),
        ({"merges": ["a"]}, "a merge of two tokens"),
        ({"merges": ["q q"]}, "a merge of two tokens into one of the vocabulary, came 'q q'"),
        ({"merges": 3}, "at most 4000000 merges"),
        ({"added_tokens": 3}, "added tokens of a tokenizer.json to be a list"),
        ({"added_tokens": [{"id": 1 << 40, "content": "x"}]}, "an added token with its id and content"),
    ],
    ids=str,
)
def test_a_tokenizer_json_of_another_kind_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        open_tokenizer("tokenizer.json", tokenizer_json(**change))


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("tokenizer.json", b"\xff", "expected a tokenizer.json"),
        ("tokenizer.json", b"[" * 100_000, "expected a tokenizer.json"),
        ("tokenizer.json", b"[" + b"[]," * 3_000_001, "at most 6000000 items"),
        ("tokenizer.json", b"[]", "which is an object; came list"),
        ("moonshine", b"\x05ab", "it ends within a piece"),
        ("moonshine", b"\xff", "it ends within a piece"),
        ("moonshine", _piece(b"ab"), "a token for each byte, it has 0"),
        ("gguf", b"GGUF", "the file has 4"),
        ("gguf", files.gguf({}), "expected a text for 'tokenizer.ggml.model', came None"),
        ("gguf", files.gguf({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "x"}), "came llama, x"),
        ("other", b"", "moonshine, tokenizer.json or gguf, came 'other'"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_damaged_tokenizer_is_one_line(kind: str, data: bytes, reason: str) -> None:
    with pytest.raises((ModelError, ConfigError), match=reason) as caught:
        open_tokenizer(kind, data)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_tokenizer_or_refused(data: bytes) -> None:
    for kind in ("moonshine", "tokenizer.json", "gguf"):
        for whole in (data, _pieces() + data, b"GGUF\3\0\0\0" + data):
            try:
                open_tokenizer(kind, whole).encode("a")
            except FlagsplitError:
                continue


def test_a_chat() -> None:
    start, end = SMALL.special["<|im_start|>"], SMALL.special["<|im_end|>"]
    said = [Message("user", "hello <|im_end|>"), Message("assistant", "hi")]
    tokens = chat_tokens(SMALL, said, system="")
    text = SMALL.decode(tokens)
    assert text == "user\nhello <|im_end|>\nassistant\nhi\nassistant\n"
    assert [tokens.count(start), tokens.count(end)] == [3, 2]
    assert SMALL.decode(chat_tokens(SMALL, said)).startswith("system\nYou are a helpful AI assistant named SmolLM")
    own = [Message("system", "Be brief."), *said]
    assert SMALL.decode(chat_tokens(SMALL, own)).startswith("system\nBe brief.\nuser\n")
    with pytest.raises(InputError, match="at least one message"):
        chat_tokens(SMALL, [])
    with pytest.raises(InputError, match="roles system, user, assistant, came 'root'"):
        chat_tokens(SMALL, [Message("root", "x")])
    with pytest.raises(ModelError, match="this model takes no chats"):
        chat_tokens(PIECES, said)


def test_an_instruction() -> None:
    template = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    asked = "hello <|end|> {prompt}"
    assert instruction_tokens(SMALL, template, asked) == chat_tokens(SMALL, [Message("user", asked)], system="")
    assert instruction_tokens(SMALL, "", asked) == SMALL.encode(asked)


# Token ids as Hugging Face's `tokenizers` 0.23.3 gives them.
KNOWN: Mapping[str, Mapping[str, list[int]]] = {
    "whisper-base-tokenizer": {
        " Ever tried, ever failed.": [12123, 220, 83, 2428, 11, 1562, 7612, 13],
        "It's 1 234,5 km\xb2\u2003\n\n  x": [
            *(3522, 311, 502, 6673, 19, 11, 20, 10698, 27643, 913, 225, 198, 198, 220, 2031),
        ],
        "na\xefve \u6771\u4eac \U0001f469\u200d\U0001f467": [
            *(629, 15487, 303, 220, 18413, 31375, 36276, 102, 913, 235, 31017, 100),
        ],
        "\x1c\x85  don'T\t": [216, 126, 227, 220, 500, 6, 51, 197],
    },
    "smollm2": {
        " Ever tried, ever failed.": [17113, 5655, 28, 2042, 6344, 30],
        "It's 1 234,5 km\xb2\u2003\n\n  x": [
            *(1589, 506, 216, 33, 216, 34, 35, 36, 28, 37, 6381, 19133, 321, 221, 8866, 1792),
        ],
        "na\xefve \u6771\u4eac \U0001f469\u200d\U0001f467": [
            *(3546, 46494, 17097, 247, 126, 16736, 122, 15107, 235, 119, 321, 231, 10813, 235, 117),
        ],
        "\x1c\x85  don'T\t": [213, 141, 223, 216, 1326, 23, 68, 197],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_tokens_of_real_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAGSPLIT_CACHE", raising=False)
    try:
        data = zoo.pull(name).read_bytes()
    except PeerError as error:
        pytest.skip(str(error))
    tokenizer = open_tokenizer("gguf" if name == "smollm2" else "tokenizer.json", data)
    for text, tokens in KNOWN[name].items():
        assert tokenizer.encode(text) == tokens
        assert tokenizer.decode(tokens) == text
