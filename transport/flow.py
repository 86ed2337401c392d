"""Credit between two channels: what a connection's Hello and Welcome agree on, and the two halves at work.

Every channel keeps one `Flow` per connection and shows it the messages that pass; it answers with the Credits to send.
The counting itself is in `credit.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from flagsplit.errors import ConfigError, ProtocolError
from flagsplit.transport.channel import Acked, ChannelOptions, SendQueue, payload_bytes_of
from flagsplit.transport.credit import Allowance, Grant
from flagsplit.transport.messages import CREDIT, Credit, Frame, Hello, Lane, Message, Welcome

MessageT = TypeVar("MessageT", bound=Message)


class Flow:
    """Both directions of one connection, and what waits to be sent on it.

    Limits hold once both sides named the feature "credit".
    """

    def __init__(self, options: ChannelOptions) -> None:
        self.allowance = Allowance()
        self.grant = Grant(options.window_bytes, options.ack_delay_s)
        self._control = SendQueue(options.backlog_limit_bytes(Lane.CONTROL))
        self._data = SendQueue(options.backlog_limit_bytes(Lane.DATA), self.allowance)
        self.queues = {Lane.CONTROL: self._control, Lane.DATA: self._data}
        self._ours: Hello | Welcome | None = None
        self._theirs: Hello | Welcome | None = None
        self._agreed = False

    def stamped(self, message: MessageT) -> MessageT:
        """The message as it should be sent: a Hello or Welcome says what this channel can, unless it does already."""
        if not isinstance(message, Hello | Welcome) or self.grant.window_bytes == 0:
            return message
        features = message.features if CREDIT in message.features else (*message.features, CREDIT)
        return replace(message, features=features, credit_bytes=message.credit_bytes or self.grant.opening_bytes)

    @property
    def has_queued(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._control or self._data)

    def owes(self, now_s: float) -> bool:
        """Whether `give_credit` has something to say."""
        due_s = self.grant.due_s()
        return due_s is not None and due_s <= now_s

    def sent(self, message: Message) -> None:
        """Note a message that went out; payloads are the queue's to count."""
        if self._ours is None and isinstance(message, Hello | Welcome):
            self._ours = message
            self._agree()

    def came(self, message: Message, frames: Sequence[Frame], now_s: float) -> None:
        """Note a message that came in. Raises ProtocolError when it overran the limit."""
        if payload_bytes := payload_bytes_of(frames):
            self.grant.take(payload_bytes, now_s)
        elif self._theirs is None and isinstance(message, Hello | Welcome):
            self._theirs = message
            self._agree()

    def acked(self, peer: str, credit: Credit) -> Acked:
        """The event of a Credit that came. Raises ProtocolError when it makes no sense here."""
        if not self._agreed:
            raise ProtocolError("Credit came, but not both sides named the feature")
        self.allowance.credit(credit)
        unacked_bytes = self.allowance.sent_bytes - self.allowance.acked_bytes + self.queues[Lane.DATA].payload_bytes
        return Acked(peer, credit.received_bytes, unacked_bytes, credit.held_us / 1e6)

    def give_credit(self, now_s: float, send: Callable[[Credit], bool]) -> None:
        """Say what is due by now, if anything."""
        if not self.owes(now_s):
            return
        credit = self.grant.credit(now_s)
        if send(credit):
            self.grant.told(credit)
        else:
            self.grant.postpone(now_s)

    def pause(self, paused: bool) -> None:
        self.grant.paused = paused

    def resize(self, window_bytes: int) -> None:
        """Raises ConfigError on a window of nothing; credit that was given stays."""
        if window_bytes < 1:
            raise ConfigError(f"window: expected at least 1 byte, got {window_bytes}; to stop a peer, pause it")
        if self.grant.window_bytes:
            self.grant.window_bytes = window_bytes

    def _agree(self) -> None:
        if self._ours is None or self._theirs is None:
            return
        self._agreed = CREDIT in self._ours.features and CREDIT in self._theirs.features
        if self._agreed:
            self.allowance.limit_bytes = self._theirs.credit_bytes or None
            if self._ours.credit_bytes and self.grant.window_bytes:
                self.grant.start(self._ours.credit_bytes)
