"""Each reader gives what was written, and one clear line for what was not."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flagir.programs.weights import files

from flagsplit.errors import ModelError
from flagsplit.flagir.programs.weights.ctranslate2 import read_ctranslate2
from flagsplit.flagir.programs.weights.gguf import GgufFile, read_gguf
from flagsplit.flagir.programs.weights.safetensors import read_safetensors
from flagsplit.flagir.programs.weights.tensors import Weights, bfloat16

TENSORS = {
    "a": files.noise(3, 4),
    "half": files.noise(5, dtype="float16"),
    "whole": files.noise(2, 1, 3, dtype="int8"),
    "one": np.array(7, np.int8),
}
FACTS = {"general.name": "räksmörgås", "n.layers": 3, "rate": 0.5, "flag": True, "words": ("a", "ß"), "none": ()}


def _read_gguf(path: Path) -> Weights:
    return read_gguf(path).weights


def _read_ctranslate2(path: Path) -> Weights:
    return read_ctranslate2(path).weights


FORMATS: dict[str, tuple[bytes, Callable[[Path], Weights]]] = {
    "safetensors": (files.safetensors(TENSORS), read_safetensors),
    "ctranslate2": (files.ctranslate2(TENSORS), _read_ctranslate2),
    "gguf": (files.gguf(FACTS, TENSORS), _read_gguf),
}


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_come_back(name: str, tmp_path: Path) -> None:
    data, read = FORMATS[name]
    path = tmp_path / "weights"
    path.write_bytes(data)
    weights = read(path)
    assert weights.names == tuple(TENSORS)
    for each, array in TENSORS.items():
        came = weights.read(each, *array.shape)
        assert came.dtype == (np.float32 if array.dtype.kind == "f" else array.dtype)
        np.testing.assert_array_equal(came, array.astype(came.dtype))
        came[...] = 0
    with pytest.raises(ModelError, match=r"expected 'a' of shape \[4, 3\], came \[3, 4\]"):
        weights.read("a", 4, 3)
    with pytest.raises(ModelError, match="expected a tensor 'b', which the file does not have"):
        weights.read("b")


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    wanted = np.array([1.0, -2.5, 0.0, 1e30], np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    data = (wanted >> np.uint32(16)).astype("<u2").tobytes()
    np.testing.assert_array_equal(bfloat16(memoryview(data)), wanted.view(np.float32))


def test_a_file_in_parts_is_read_as_one(tmp_path: Path) -> None:
    data = files.ctranslate2(TENSORS, {"again": "a"})
    for cut in range(0, len(data), 7):
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(data[:cut])
        two.write_bytes(data[cut:])
        file = read_ctranslate2(one, two)
        assert file.specification == "TestSpec"
        for each, array in {**TENSORS, "again": TENSORS["a"]}.items():
            np.testing.assert_array_equal(file.weights.read(each), array)


def test_facts_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(files.gguf(FACTS))
    file = read_gguf(tmp_path / "x")
    assert file.facts == FACTS
    assert (file.size("n.layers"), file.number("rate"), file.text("general.name")) == (3, 0.5, "räksmörgås")
    assert file.texts("words") == ("a", "ß")
    assert file.number("missing", 4.0) == 4.0
    wrong: list[tuple[Callable[[GgufFile], Any], str]] = [
        (lambda f: f.size("rate"), "positive whole number for 'rate', came 0.5"),
        (lambda f: f.number("flag"), "expected a number for 'flag', came True"),
        (lambda f: f.number("missing"), "expected a number for 'missing', came None"),
        (lambda f: f.text("n.layers"), "expected a text for 'n.layers', came 3"),
        (lambda f: f.texts("general.name"), "expected a list of texts"),
    ]
    for ask, reason in wrong:
        with pytest.raises(ModelError, match=reason):
            ask(file)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_ends_early_is_refused(name: str, tmp_path: Path) -> None:
    data, read = FORMATS[name]
    path = tmp_path / "weights"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match="weights"):
            read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_damage_gives_one_line_or_numbers(name: str, tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    """Whatever is in the file: its tensors take no more than what its bytes can say, or it is refused."""
    data, read = FORMATS[name]
    damaged = bytearray(data)
    for at, new in edits:
        # Most of the file is header, where it hurts.
        start = at % len(data)
        damaged[start : start + len(new)] = new
    path = tmp_path / "weights"
    path.write_bytes(damaged)
    with suppress(ModelError):
        weights = read(path)
        assert sum(weights.read(each).nbytes for each in weights.names) <= 8 * len(damaged)


SAFE: dict[str, tuple[dict[str, Any], str]] = {
    "beyond": ({"a": {"data_offsets": [0, 1 << 40]}}, "its offsets are 0 and"),
    "backwards": ({"a": {"data_offsets": [48, 0]}}, "its offsets are 48 and 0"),
    "negative": ({"a": {"shape": [-3, -4]}}, "is more than the file's"),
    "huge": ({"a": {"shape": [1 << 40, 1 << 40]}}, "is more than the file's"),
    "empty but huge": ({"a": {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}, "is more than the file"),
    "deep": ({"a": {"shape": [1] * 9}}, "a shape of at most 8 numbers"),
    "truths": ({"a": {"shape": [True, True]}}, "a shape of at most 8 numbers"),
    "type": ({"a": {"dtype": "F8_E4M3"}}, "came type 'F8_E4M3'"),
    "shared": ({"b": {"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}}, "have 96 bytes, the file only 48"),
    "row": ({"a": 3}, "expected a type, a shape and two offsets"),
    "list": ({"a": []}, "expected a type, a shape and two offsets"),
}


@pytest.mark.parametrize("case", SAFE)
def test_safetensors_that_lie(case: str, tmp_path: Path) -> None:
    changes, reason = SAFE[case]
    (tmp_path / "x").write_bytes(files.safetensors({"a": files.noise(3, 4)}, **changes))
    with pytest.raises(ModelError, match=reason):
        read_safetensors(tmp_path / "x")


def _c2(**edits: int) -> bytes:
    data = bytearray(files.ctranslate2({"v": files.noise(2, 2)}))
    at = data.index(b"v\0") + 2
    places = {"rank": (at, "<B"), "size": (at + 1, "<I"), "kind": (at + 9, "<B"), "bytes": (at + 10, "<I")}
    places |= {"version": (0, "<I"), "count": (19, "<I"), "name": (4, "<H")}
    for name, value in edits.items():
        start, code = places[name]
        struct.pack_into(code, data, start, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({"version": 5}, "of version 6, came 5"),
        ({"rank": 200}, "at most 8 axes, it has 200"),
        ({"size": 0xFFFFFFFF}, "is more than the file's"),
        ({"kind": 9}, "a type from 0 to 5, came 9"),
        ({"bytes": 12}, "expected 16 bytes for"),
        ({"count": 0xFFFFFFFF}, "at most 100000 variables, it says 4294967295"),
        ({"name": 0xFFFF}, "a name of at most 1024 bytes, it has 65535"),
    ],
    ids=str,
)
def test_ctranslate2_files_that_lie(edits: dict[str, int], reason: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(_c2(**edits))
    with pytest.raises(ModelError, match=reason):
        read_ctranslate2(tmp_path / "x")


def test_an_alias_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(files.ctranslate2({"v": files.noise(1)}, {"w": "u"}))
    with pytest.raises(ModelError, match="'w' stands for 'u', which the file does not have"):
        read_ctranslate2(tmp_path / "x")


_HEAD = b"GGUF" + struct.pack("<I", 3)
_NAME = struct.pack("<Q", 1) + b"n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GGML" + bytes(60), "begins with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3, came 1"),
        (_HEAD + struct.pack("<QQ", 1 << 60, 0), "it says 1152921504606846976 entries follow"),
        (_HEAD + struct.pack("<QQ", 0, 1 << 60), "it says 1152921504606846976 entries follow"),
        (_HEAD + struct.pack("<QQQ", 0, 1, 1 << 60) + bytes(9), "a text of at most 1024 bytes"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _NAME + struct.pack("<IQ", 8, 1 << 60), "a text of at most 1048576 bytes"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _NAME + struct.pack("<II", 99, 0), "a type from 0 to 12, came 99"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _NAME + struct.pack("<IIQ", 9, 8, 1 << 60), "entries follow"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _NAME + struct.pack("<IIQ", 9, 9, 1) + bytes(8), "one of type 9"),
        (_HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<QB", 1, 255) + bytes(8), "it is damaged: 'utf-8' codec"),
        (files.gguf({"general.alignment": 0}, {"a": files.noise(2)}), "an alignment of at most 65536 bytes, came 0"),
        (files.gguf({}, blocks={"a": (2, (31,), bytes(18))}), "rows of 32 numbers or a multiple, came 31"),
        (files.gguf({}, blocks={"a": (2, (), bytes(18))}), "rows of 32 numbers or a multiple, came 1"),
        (files.gguf({}, blocks={"a": (16, (32,), bytes(18))}), "came GGUF's type 16"),
        (files.gguf({}, blocks={"a": (0, (1 << 40, 1 << 40), bytes(18))}), "is more than the file's"),
        (files.gguf({}, blocks={"a": (0, (1,) * 5, bytes(4))}), "at most 4 axes, came 5"),
    ],
)
def test_gguf_files_that_lie(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ModelError, match=reason):
        read_gguf(tmp_path / "x")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the weights"):
        read_gguf(tmp_path / "none")
