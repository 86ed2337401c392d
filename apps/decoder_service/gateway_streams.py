"""One stream of tokens as text: whole characters, stop strings, the reason of the end."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from flagsplit.apps.decoder_service.gateway_backend import Backend, Wanted
from flagsplit.apps.decoder_service.gateway_errors import ApiError
from flagsplit.apps.decoder_service.gateway_text import StopStrings


@dataclass(frozen=True)
class Delta:
    """More text of a stream.

    Attributes:
        text: to be appended.
        tokens: how many tokens it took, those of a stop string counted.
        reason: why the stream ended, "" if it did not: "stop" or "length".
        where: what made it.
    """

    text: str
    tokens: int
    reason: str = ""
    where: str = ""


async def text_deltas(backend: Backend, wanted: Wanted, stops: Sequence[str] = ()) -> AsyncGenerator[Delta, None]:
    """The text of a stream as it is made. Ends with the first stop string, which is not given.

    Raises:
        ApiError: the deadline came before the end.
    """
    text, watch = backend.tokenizer.decode_stream(), StopStrings(stops)
    text.feed((*wanted.prompt, *wanted.generated))  # How a token is written depends on whether others are before it.
    async with aclosing(backend.generate(wanted)) as pieces:
        async for piece in pieces:
            shown = watch.push(text.feed(piece.tokens))
            if piece.reason and not watch.found:
                shown += watch.push(text.finish())
            if piece.reason and not watch.found:
                shown += watch.finish()
            if piece.reason in ("deadline", "cancelled") and not watch.found:
                raise ApiError(504, "the deadline came before the end of the text; ask for less, or again", "timeout")
            reason = "stop" if watch.found else piece.reason
            yield Delta(shown, len(piece.tokens), reason, piece.where)
            if reason:
                return
    raise ApiError(502, "the stream ended without a reason; ask again", "upstream_failed")
