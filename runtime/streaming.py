"""A stream of requests through anything that can be asked without waiting, several on their way at once.

`flagsplit.runtime.session` and `flagsplit.runtime.bucketed` share it; the asyncio twin has its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait

from flagsplit.runtime.session_settings import Answer


def streamed(
    submit: Callable[[Mapping[str, object]], Future[Answer]],
    requests: Iterable[Mapping[str, object]],
    *,
    window: int,
    ordered: bool,
) -> Iterator[Answer]:
    """Answers to many requests; those that nobody waits for any more are cancelled.

    Args:
        submit: asks for one.
        requests: inputs, taken one by one as there is room.
        window: how many may be on their way.
        ordered: whether answers come in the order of their requests, or each when it is there.
    """
    pending: list[Future[Answer]] = []
    try:
        for inputs in requests:
            pending.append(submit(inputs))
            yield from _take(pending, ordered=ordered, down_to=window - 1)
        yield from _take(pending, ordered=ordered, down_to=0)
    finally:
        for future in pending:
            future.cancel()


def _take(pending: list[Future[Answer]], *, ordered: bool, down_to: int) -> Iterator[Answer]:
    """Answers that are there, and as many others as it takes to leave no more than `down_to` waiting."""
    while pending:
        ready = next((each for each in (pending[:1] if ordered else pending) if each.done()), None)
        if ready is None and len(pending) <= down_to:
            return
        if ready is None and not ordered:
            wait(pending, return_when=FIRST_COMPLETED)
            continue
        future = ready or pending[0]
        answer = future.result()
        pending.remove(future)
        yield answer
