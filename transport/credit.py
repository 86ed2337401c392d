"""Byte credit of one direction of one connection: how much may still be sent, and when to allow more.

Both sides count payload bytes of the data lane from the start of the connection. The receiver says up to which count
the sender may go; both counts are exact, because nothing is lost on a connection that lives. `Allowance` is the
sender's half, `Grant` the receiver's. Pure: the time is passed in. Who tells whom is in `flow.py`, the rules for
other implementations are in `docs/wire.md`, "Credit".
"""

from flagsplit.errors import ProtocolError
from flagsplit.transport.messages import Credit

_US_PER_S = 1_000_000


class Allowance:
    """The sender's half: payload bytes sent, acknowledged, and allowed in all (None: no limit)."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.limit_bytes: int | None = None

    def admits(self, payload_bytes: int) -> bool:
        """Whether a message with this payload may go now.

        One that is larger than the whole window may go while nothing is unacknowledged and the limit is not reached: it
        could never go otherwise.
        """
        if self.limit_bytes is None or payload_bytes == 0 or self.sent_bytes + payload_bytes <= self.limit_bytes:
            return True
        return self.acked_bytes == self.sent_bytes < self.limit_bytes

    def spend(self, payload_bytes: int) -> None:
        self.sent_bytes += payload_bytes

    def refund(self, payload_bytes: int) -> None:
        """Take back what was sent and will never arrive; only where a sender can know that."""
        self.sent_bytes -= payload_bytes

    def credit(self, credit: Credit) -> None:
        """Note what the receiver said. Raises ProtocolError when that contradicts what it said before, or us."""
        if not self.acked_bytes <= credit.received_bytes <= self.sent_bytes:
            raise ProtocolError(
                f"Credit.received_bytes: expected {self.acked_bytes}..{self.sent_bytes}, the bytes acknowledged before "
                f"and the bytes sent, got {credit.received_bytes}"
            )
        if self.limit_bytes is not None and credit.limit_bytes < self.limit_bytes:
            raise ProtocolError(
                f"Credit.limit_bytes: expected {self.limit_bytes} or more, for credit is never taken back, "
                f"got {credit.limit_bytes}"
            )
        self.acked_bytes = credit.received_bytes
        if self.limit_bytes is not None:
            self.limit_bytes = credit.limit_bytes


class Grant:
    """The receiver's half: payload bytes that came, and how many the sender was told may come in all.

    Nothing is limited and no Credit due before `start`.

    Args:
        window_bytes: how far the limit is ahead of what came.
        ack_delay_s: how long bytes may stay unacknowledged while they are less than a quarter of the window.
    """

    def __init__(self, window_bytes: int, ack_delay_s: float) -> None:
        self.window_bytes = window_bytes
        self.received_bytes = 0
        self.limit_bytes: int | None = None
        self.paused = False
        self._ack_delay_s = ack_delay_s
        self._told_bytes = 0
        self._first_s = self._last_s = 0.0
        self._held_until_s = self._retry_s = 0.0

    @property
    def opening_bytes(self) -> int:
        """What Hello or Welcome should promise; a paused peer gets the least that is not 0, for that is no limit."""
        return 1 if self.paused else self.window_bytes

    def start(self, limit_bytes: int) -> None:
        """The peer knows its first limit, and from now on has to keep it."""
        self.limit_bytes = limit_bytes

    def take(self, payload_bytes: int, now_s: float) -> None:
        """Count a message that came. Raises ProtocolError when the sender was not allowed to send it."""
        before, after = self.received_bytes, self.received_bytes + payload_bytes
        if self.limit_bytes is not None and after > self.limit_bytes:
            alone = self._told_bytes == before < self.limit_bytes
            if not alone:
                raise ProtocolError(
                    f"expected at most {self.limit_bytes} payload bytes on this connection before more credit, "
                    f"got {after}"
                )
        if before == self._told_bytes:
            self._first_s = now_s
        self.received_bytes, self._last_s = after, now_s

    def hold(self, until_s: float) -> None:
        """Raise the limit no further before a time; what came is still acknowledged."""
        if until_s > self._held_until_s:
            self._held_until_s = until_s

    def due_s(self) -> float | None:
        """When a Credit should be sent: a time that may be past, or None while there is nothing to say."""
        if self.limit_bytes is None:
            return None
        unacked_bytes = self.received_bytes - self._told_bytes
        if unacked_bytes * 4 >= self.window_bytes:
            due_s = self._last_s
        elif unacked_bytes:
            due_s = self._first_s + self._ack_delay_s
        elif not self.paused and self.received_bytes + self.window_bytes > self.limit_bytes:
            due_s = self._held_until_s
        else:
            return None
        return max(due_s, self._retry_s)

    def credit(self, now_s: float) -> Credit:
        """What there is to say now; `told` when it was sent, `postpone` when that was not possible."""
        limit_bytes = self.limit_bytes or 0
        if not self.paused and now_s >= self._held_until_s:
            limit_bytes = max(limit_bytes, self.received_bytes + self.window_bytes)
        held_us = max(0, round((now_s - self._last_s) * _US_PER_S))
        return Credit(self.received_bytes, limit_bytes, held_us)

    def told(self, credit: Credit) -> None:
        self._told_bytes, self.limit_bytes = credit.received_bytes, credit.limit_bytes

    def postpone(self, now_s: float) -> None:
        """Try again later; a due time in the past would make the caller spin."""
        self._retry_s = now_s + self._ack_delay_s
