"""The asyncio twin of `flagsplit.runtime.session.Session`: the same words, awaited."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any

from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Session
from flagsplit.runtime.session_settings import Answer
from flagsplit.splitter.sla import SLA


class AsyncSession:
    """A session for asyncio. Use it in an `async with` statement of `flagsplit.connect_async`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def bundle(self) -> Bundle:
        """What it runs."""
        return self._session.bundle

    @property
    def tiers(self) -> dict[str, str]:
        """As `Session.tiers`."""
        return self._session.tiers

    async def submit(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> "asyncio.Future[Answer]":
        """Ask; returns as soon as there is room for the request, with a future of its answer."""
        if self._session.has_room:
            asked = self._session.submit(inputs, plan=plan, deadline_s=deadline_s, traceparent=traceparent)
        else:
            asked = await asyncio.to_thread(
                self._session.submit, inputs, plan=plan, deadline_s=deadline_s, traceparent=traceparent
            )
        return asyncio.wrap_future(asked)

    async def run(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Answer:
        """As `Session.run`; cancelling the task abandons the request."""
        return await (await self.submit(inputs, plan=plan, deadline_s=deadline_s, traceparent=traceparent))

    async def stream(
        self,
        requests: AsyncIterable[Mapping[str, object]],
        *,
        plan: str = "",
        deadline_s: float | None = None,
        window: int = 8,
        ordered: bool = True,
    ) -> AsyncIterator[Answer]:
        """Answers to many requests, up to `window` on their way at once.

        Each answer is given as soon as it is there, however long the next request takes to come.

        Args:
            requests: inputs, taken one by one as there is room.
            plan: as in `Session.run`.
            deadline_s: seconds that each may take.
            window: how many.
            ordered: whether answers come in the order of their requests, or each when it is there.
        """
        source = aiter(requests)
        pending: list[asyncio.Future[Answer]] = []
        coming: asyncio.Future[Mapping[str, object]] | None = None
        is_over = False
        try:
            while True:
                if coming is None and not is_over and len(pending) < window:
                    coming = asyncio.ensure_future(_next(source))
                if coming is None and not pending:
                    return
                waited: set[asyncio.Future[Any]] = set(pending[:1] if ordered else pending)
                await asyncio.wait(waited | ({coming} if coming else set()), return_when=asyncio.FIRST_COMPLETED)
                if coming is not None and coming.done():
                    try:
                        inputs = coming.result()
                    except StopAsyncIteration:
                        is_over = True
                    else:
                        pending.append(await self.submit(inputs, plan=plan, deadline_s=deadline_s))
                    coming = None
                for future in [each for each in pending[: 1 if ordered else None] if each.done()]:
                    pending.remove(future)
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()
            if coming is not None:
                coming.cancel()

    async def swap(self, bundle: Bundle, *, timeout_s: float = 60.0) -> tuple[str, ...]:
        """As `Session.swap`."""
        return await asyncio.to_thread(self._session.swap, bundle, timeout_s=timeout_s)

    async def update_sla(self, sla: SLA | Mapping[str, Any], *, timeout_s: float = 60.0) -> str:
        """As `Session.update_sla`."""
        return await asyncio.to_thread(self._session.update_sla, sla, timeout_s=timeout_s)

    async def close(self) -> None:
        """As `Session.close`."""
        await asyncio.to_thread(self._session.close)


async def _next(source: AsyncIterator[Mapping[str, object]]) -> Mapping[str, object]:
    return await anext(source)
