"""What one client may ask of a listener: connections, peers, Hellos, messages and bytes.

Token buckets on a clock that is passed in. Everything here is bounded, whoever comes back how often; what happens to
those who ask too much is the channels' business. How much payload may be on the way is credit's, in `flow.py`.
"""

from collections import OrderedDict
from collections.abc import Sequence

from flagsplit.errors import ProtocolError
from flagsplit.transport.channel import ChannelOptions, payload_bytes_of
from flagsplit.transport.messages import MAX_PAYLOAD_BYTES, Frame

_MESSAGE_BURST_S = 2.0
_HELLO_BURST_S = 4.0
_MAX_KEYS = 4096


class TokenBucket:
    """Fills with `rate_per_s` up to `burst`; full at first. A rate of 0 stands for no limit."""

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._level, self._filled_s = burst, now_s

    def take(self, now_s: float, tokens: float = 1.0) -> bool:
        """Take tokens if that many are there."""
        if self._rate_per_s == 0:
            return True
        self._fill(now_s)
        if self._level < tokens:
            return False
        self._level -= tokens
        return True

    def charge(self, now_s: float, tokens: float) -> float:
        """Take tokens, on debt if need be; when the debt will be paid, a time that may be past."""
        if self._rate_per_s == 0:
            return now_s
        self._fill(now_s)
        self._level -= tokens
        return now_s + max(0.0, -self._level) / self._rate_per_s

    def _fill(self, now_s: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now_s - self._filled_s) * self._rate_per_s)
        self._filled_s = max(self._filled_s, now_s)


class PeerRates:
    """The rates of one inbound peer."""

    def __init__(self, options: ChannelOptions, now_s: float) -> None:
        self._options = options
        self._any = options.max_messages_per_s > 0 or options.max_data_bytes_per_s > 0
        rate = options.max_messages_per_s
        self._messages = TokenBucket(rate, max(1.0, rate * _MESSAGE_BURST_S), now_s)
        rate = options.max_data_bytes_per_s
        # No single message can be an offense.
        self._bytes = TokenBucket(rate, max(float(MAX_PAYLOAD_BYTES), rate * _MESSAGE_BURST_S), now_s)

    def count(self, frames: Sequence[Frame], now_s: float, *, is_limited: bool) -> float:
        """Count a message; until when the peer should get no more credit, a time that may be past.

        Raises ProtocolError when it sends too many messages, or too many bytes and is not limited by credit.
        """
        if not self._any:
            return now_s
        if not self._messages.take(now_s):
            rate = self._options.max_messages_per_s
            raise ProtocolError(f"expected at most {rate:g} messages per second, got more; send fewer, larger ones")
        payload_bytes = payload_bytes_of(frames)
        if is_limited or not payload_bytes:
            return self._bytes.charge(now_s, payload_bytes)
        if not self._bytes.take(now_s, payload_bytes):
            rate = self._options.max_data_bytes_per_s
            raise ProtocolError(f'expected at most {rate:g} payload bytes per second without "credit", got more')
        return now_s


class Admission:
    """Who may come in at all. Each method answers with the reason why not, or ""."""

    def __init__(self, options: ChannelOptions) -> None:
        self._options = options
        self._hellos: OrderedDict[str, TokenBucket] = OrderedDict()
        self._told_s = float("-inf")
        self._untold = 0

    def connection(self, count: int) -> str:
        """One more connection, with which there are `count`."""
        most = self._options.max_inbound_connections
        return "" if count <= most else f"all {most} connections of this listener are taken; raise its limit, or wait"

    def peer(self, count: int) -> str:
        """One more peer of the same key, with which there are `count`."""
        most = self._options.max_peers_per_key
        return "" if count <= most else f"{most} peers with the same key are here already; give others their own"

    def hello(self, client: str, now_s: float) -> str:
        """A Hello of a client, by its key or, without keys, its instance."""
        rate = self._options.max_hellos_per_s
        bucket = self._hellos.pop(client, None)
        if bucket is None:
            bucket = TokenBucket(rate, max(1.0, rate * _HELLO_BURST_S), now_s)
        self._hellos[client] = bucket
        if len(self._hellos) > _MAX_KEYS:
            self._hellos.popitem(last=False)
        return "" if bucket.take(now_s) else f"more than {rate:g} Hellos per second came with the same key"

    def telling(self, reason: str, now_s: float) -> str:
        """What to tell about a refusal: one line a second at most, with the number of those not told; else ""."""
        if now_s - self._told_s < 1.0:
            self._untold += 1
            return ""
        more = f" (and {self._untold} more refused since the last such line)" if self._untold else ""
        self._told_s, self._untold = now_s, 0
        return f"refused: {reason}{more}"
