"""Bodies of `multipart/form-data` (RFC 7578), from bytes that are in memory already."""

import re
from dataclasses import dataclass
from email.message import Message
from typing import Final

from flagsplit.apps.decoder_service.gateway_errors import ApiError

MAX_PARTS: Final = 64
MAX_HEAD_BYTES: Final = 4096
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True)
class Part:
    """One field.

    Attributes:
        name: of the field.
        filename: what the client calls the file, None where it is no file.
        data: its value.
    """

    name: str
    filename: str | None
    data: memoryview

    def text(self) -> str:
        """The value as text.

        Raises:
            ApiError: it is none.
        """
        try:
            return bytes(self.data).decode()
        except UnicodeDecodeError:
            raise ApiError(400, f"expected text in the field {self.name!r:.80}", "bad_input", self.name[:80]) from None


def read_multipart(content_type: str, body: bytes) -> list[Part]:
    """The fields of a form, in their order.

    Args:
        content_type: the header with the boundary.
        body: all of it; values are views into it.

    Raises:
        ApiError: it is no such form, or has too many fields.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary("")
    if header.get_content_type() != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise ApiError(
            415, "expected multipart/form-data with a boundary, such as curl -F file=@talk.wav sends", "bad_input"
        )
    mark = b"--" + boundary.encode("ascii")
    place = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if place == 1:
        raise _damaged("its boundary does not come")
    parts: list[Part] = []
    whole = memoryview(body)
    while True:
        place += len(mark)
        line_end = body.find(b"\r\n", place, place + 256)
        if body[place : place + 2] == b"--":
            return parts
        if line_end < 0 or body[place:line_end].strip(b" \t"):
            raise _damaged("a boundary is not followed by the end of the line")
        if len(parts) == MAX_PARTS:
            raise ApiError(400, f"expected at most {MAX_PARTS} fields in a form", "bad_input")
        head_end = body.find(b"\r\n\r\n", line_end, line_end + MAX_HEAD_BYTES)
        if head_end < 0:
            raise _damaged("the head of a field does not end")
        end = body.find(b"\r\n" + mark, head_end + 2)
        if end < 0:
            raise _damaged("a field does not end with the boundary")
        name, filename = _name(body[line_end + 2 : head_end])
        parts.append(Part(name, filename, whole[head_end + 4 : max(end, head_end + 4)]))
        place = end + 2


def _name(head: bytes) -> tuple[str, str | None]:
    message = Message()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() in ("content-disposition", "content-transfer-encoding"):
            message[key.strip()] = value.strip()
    if message.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise _damaged("fields with a transfer encoding are not taken")
    name = message.get_param("name", None, "content-disposition", unquote=True)
    if message.get_content_disposition() != "form-data" or not isinstance(name, str) or not name:
        raise _damaged("a field has no name")
    return name, message.get_filename()


def _damaged(reason: str) -> ApiError:
    return ApiError(400, f"the form is damaged: {reason}", "bad_input")
