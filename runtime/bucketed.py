"""One model of fixed sizes, its buckets, asked as if its size were open: pad, ask the bucket that fits, crop.

Each bucket is a bundle with a session of its own. What may be padded with what is the application's to know; zeros are
right where rows do not depend on each other, as along a batch. `docs/shapes.md` says more, `bucket_shapes` compares the
bundles, `flagsplit.flagir.specialize` makes graphs of fixed sizes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

import numpy as np

from flagsplit.errors import InputError
from flagsplit.flagir.bucket_sizes import smallest_holding
from flagsplit.runtime.bucket_shapes import bucket_shapes
from flagsplit.runtime.inputs import check_inputs
from flagsplit.runtime.session import Session
from flagsplit.runtime.session_settings import Answer
from flagsplit.runtime.streaming import streamed
from flagsplit.targets.interface import Array

Pad = Callable[[str, Array, int, int], Array]
"""Makes an input longer: its name, the array, the axis, and the elements that the axis is to have."""

_WINDOW = 8


def pad_with_zeros(_name: str, array: Array, axis: int, size: int) -> Array:
    """Zeros (False for booleans) after the end of an axis, so that it has `size` elements."""
    shape = list(array.shape)
    shape[axis] = size
    padded = np.zeros(shape, array.dtype)
    padded[(*(slice(None),) * axis, slice(array.shape[axis]))] = array
    return padded


class BucketedSession:
    """Sessions of bundles that differ in one size, as one. Use it in a `with` statement, or call `close`.

    Any thread may ask. Which input axes carry the size is told by comparing the bundles.

    Args:
        sessions: one for each bundle; they are closed with this one.
        symbol: name of the size in messages; see `bucket_shapes`.
        pad: makes inputs as long as their bucket, one axis at a time.
        crop: whether outputs lose what stems from padding: each axis as long as the bucket is cut to the request's
            size.

    Attributes:
        sessions: by size, ascending; what is not here (`swap`, `decisions`, `events`) is theirs.
        symbol: name of the size.

    Raises:
        ConfigError: the bundles differ in anything but one size.
    """

    def __init__(
        self, sessions: Sequence[Session], symbol: str = "", pad: Pad = pad_with_zeros, *, crop: bool = True
    ) -> None:
        shapes = bucket_shapes([session.bundle.facts for session in sessions], symbol, crop=crop)
        at = {size: index for index, size in enumerate(shapes.sizes)}
        self.sessions = {size: sessions[at[size]] for size in sorted(at)}
        self.symbol = shapes.symbol
        self._inputs = shapes.inputs
        self._carried = {tensor.name: shapes.axes(tensor) for tensor in shapes.inputs}
        self._cropped = {tensor.name: shapes.axes(tensor) for tensor in shapes.outputs} if crop else {}
        self._pad = pad

    @property
    def tiers(self) -> dict[str, str]:
        """State of each tier beyond this one: "up" if it is for every bucket, or why it is not."""
        states: dict[str, str] = {}
        for session in self.sessions.values():
            for tier, state in session.tiers.items():
                if states.get(tier, "up") == "up":
                    states[tier] = state
        return states

    @property
    def has_room(self) -> bool:
        """Whether `submit` would return at once, whatever the size."""
        return all(session.has_room for session in self.sessions.values())

    def submit(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Future[Answer]:
        """Ask the smallest bucket that holds the inputs, without waiting for the answer.

        Args:
            inputs: one array per graph input; the axes that carry the size have the same number of elements.
            plan, deadline_s, traceparent: as in `Session.submit`. Buckets are planned one by one: each has its plans.

        Returns:
            A future of the answer. Cancelling it before the answer comes abandons the request.

        Raises:
            InputError: as in `Session.submit`, or no bucket holds the inputs, or `pad` gave another shape or dtype.
            PolicyError, UnavailableError, PeerError: as in `Session.submit`.
        """
        arrays = check_inputs(self._inputs, inputs)
        size = self._size_of(arrays)
        bucket = smallest_holding(self.symbol, self.sessions, size)
        padded = {name: self._padded(name, array, bucket) for name, array in arrays.items()}
        asked = self.sessions[bucket].submit(padded, plan=plan, deadline_s=deadline_s, traceparent=traceparent)
        if bucket == size or not self._cropped:
            return asked
        return _then(asked, functools.partial(self._crop, size=size))

    def run(
        self, inputs: Mapping[str, object], *, plan: str = "", deadline_s: float | None = None, traceparent: str = ""
    ) -> Answer:
        """Ask and wait; arguments and errors as in `submit` and `Session.run`."""
        return self.submit(inputs, plan=plan, deadline_s=deadline_s, traceparent=traceparent).result()

    def stream(
        self,
        requests: Iterable[Mapping[str, object]],
        *,
        plan: str = "",
        deadline_s: float | None = None,
        window: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Answer]:
        """Answers to many requests of any sizes, up to `window` (8) on their way at once; as `Session.stream`."""
        return streamed(
            lambda inputs: self.submit(inputs, plan=plan, deadline_s=deadline_s),
            requests,
            window=window or _WINDOW,
            ordered=ordered,
        )

    def close(self) -> None:
        """Close the sessions of all buckets. A second call does nothing."""
        for session in self.sessions.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _size_of(self, arrays: Mapping[str, Array]) -> int:
        """What the inputs, which agree on it, have at the axes that carry the size."""
        return next(int(array.shape[axis]) for name, array in arrays.items() for axis in self._carried[name])

    def _padded(self, name: str, array: Array, bucket: int) -> Array:
        for axis in self._carried[name]:
            if array.shape[axis] == bucket:
                continue
            want = (*array.shape[:axis], bucket, *array.shape[axis + 1 :])
            padded = self._pad(name, array, axis, bucket)
            if padded.shape != want or padded.dtype != array.dtype:
                raise InputError(
                    f"input {name!r}: expected {array.dtype.name} {list(want)} of pad, "
                    f"came {padded.dtype.name} {list(padded.shape)}; pad along axis {axis} alone"
                )
            array = padded
        return array

    def _crop(self, answer: Answer, size: int) -> Answer:
        kept = {}
        for name, array in answer.items():
            axes = self._cropped[name]
            kept[name] = array[tuple(slice(size) if axis in axes else slice(None) for axis in range(array.ndim))]
        return Answer(kept, answer.report)


def _then(asked: Future[Answer], change: Callable[[Answer], Answer]) -> Future[Answer]:
    """A future of the changed answer; cancelling it cancels what was asked."""
    changed: Future[Answer] = Future()

    def pass_on(done: Future[Answer]) -> None:
        if done.cancelled():
            changed.cancel()
        elif changed.set_running_or_notify_cancel():
            error = done.exception()
            if error is None:
                changed.set_result(change(done.result()))
            else:
                changed.set_exception(error)

    asked.add_done_callback(pass_on)
    changed.add_done_callback(lambda done: asked.cancel() if done.cancelled() else None)
    return changed
