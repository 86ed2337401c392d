"""Forms: what clients write is read, and what is damaged is told."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.apps.decoder_service.conftest import BOUNDARY, form

from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_multipart import MAX_PARTS, read_multipart

KIND = f'multipart/form-data; boundary="{BOUNDARY}"'
NAMES = st.text(alphabet="abc_[]", min_size=1, max_size=8)


@pytest.mark.slow
@given(
    st.dictionaries(NAMES, st.one_of(st.binary(max_size=40), st.text(alphabet='aé😀\r\n-="', max_size=20)), max_size=5)
)
def test_fields_are_read_back(fields: dict[str, str | bytes]) -> None:
    found = {part.name: part for part in read_multipart(KIND, form(fields))}
    assert {name: bytes(part.data) for name, part in found.items()} == {
        name: value if isinstance(value, bytes) else value.encode() for name, value in fields.items()
    }
    assert {name for name, part in found.items() if part.filename is not None} == {
        name for name, value in fields.items() if isinstance(value, bytes)
    }


def test_what_looks_like_a_boundary_stays() -> None:
    data = f"\r\n\r\n--{BOUNDARY[:-1]}\r\n--\r\n".encode()
    (part,) = read_multipart(KIND, form({"file": data}))
    assert bytes(part.data) == data


def test_text_before_and_after_is_left_out() -> None:
    body = b"a preamble\r\n" + form({"model": "x"}) + b"an epilogue"
    assert [part.text() for part in read_multipart(KIND, body)] == ["x"]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_damage_is_told(noise: bytes, place: int) -> None:
    whole = form({"file": b"123", "model": "x"})
    for body in (noise, whole[:place], whole[:place] + noise + whole[place:]):
        with suppress(ApiError):
            assert all(part.name for part in read_multipart(KIND, body))


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("application/json", b"{}", "expected multipart/form-data"),
        ("multipart/form-data", b"", "expected multipart/form-data"),
        ("multipart/form-data; boundary=" + "x" * 71, b"", "expected multipart/form-data"),
        (KIND, b"", "its boundary does not come"),
        (KIND, f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--".encode(), "a field has no name"),
        (KIND, form({"a": "x"})[:-10], "does not end with the boundary"),
        (KIND, form({"a": "x" * 5}).replace(b'"a"', b'"' + b"a" * 5000 + b'"'), "head of a field does not end"),
        (KIND, form({str(number): "" for number in range(MAX_PARTS + 1)}), "at most 64 fields"),
        (KIND, form({"a": "eA=="}).replace(b'"a"', b'"a"\r\nContent-Transfer-Encoding: base64'), "transfer encoding"),
    ],
)
def test_refusals(kind: str, body: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        read_multipart(kind, body)


def test_no_text() -> None:
    (part,) = read_multipart(KIND, form({"model": b"\xff"}))
    with pytest.raises(ApiError, match="expected text in the field 'model'"):
        part.text()
