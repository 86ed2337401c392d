"""Which tensors are squeezed on which link, and how: decided from a sample and from how fast the link is.

A byte of a tensor takes `1/B` seconds over a link of B bytes per second, and `kept/B + 1/enc + 1/dec` squeezed, where
`kept` is what is left of it: squeezing pays below B = (1 - kept) / (1/enc + 1/dec). No clock and no socket is in here;
the caller gives B. The bytes are `squeeze.py`'s, the chunks `tensors.py`'s.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from flagsplit.transport.messages import ZSTD
from flagsplit.transport.squeeze import KINDS, SqueezeSpeed, host_speeds, squeeze

PLAIN: Final = ""
"""How the wire names a payload that is not squeezed."""

_SAMPLE_PIECES: Final = 4


@dataclass(frozen=True, slots=True)
class SqueezeOptions:
    """When to look and when to change.

    Attributes:
        least_bytes, least_s: tensors that are smaller, or take less time on the link, travel plain: what could be saved
            is not worth a decision, which costs some microseconds and now and then a sample.
        sample_bytes: how much of a tensor, and at most a quarter, is squeezed to see what is left of it.
        zstd_below_bytes_s: goodput from which on zstd is not tried; where it is in use it stays up to `1 + better_by`
            times that.
        zstd_least_shrink: zstd is not used where the sample shrinks by no more than this share.
        better_by: share of the predicted time that a change must save ...
        times_in_a_row: ... at so many requests in a row. What became slower than plain is dropped at once.
        sample_every: requests after which a tensor is sampled again.
        sample_at_change: and when the goodput is this many times higher or lower than at the last sample ...
        sample_rests: ... but not before so many requests have passed since.
        most_tensors: how many tensors are remembered, over all links; the least recent is forgotten.
    """

    least_bytes: int = 4096
    least_s: float = 0.5e-3
    sample_bytes: int = 64 << 10
    zstd_below_bytes_s: float = 300e6 / 8
    zstd_least_shrink: float = 0.10
    better_by: float = 0.20
    times_in_a_row: int = 2
    sample_every: int = 64
    sample_at_change: float = 1.5
    sample_rests: int = 16
    most_tensors: int = 4096

    def bytes_sampled(self, size_bytes: int) -> int:
        """How much of a tensor of this size is squeezed to see what is left of it."""
        return min(self.sample_bytes, max(self.least_bytes, size_bytes // 4), size_bytes)


@dataclass(frozen=True, slots=True)
class SqueezeDecision:
    """An entry of the decision log: written when a tensor was sampled and when its kind changes.

    Attributes:
        link, tensor: what it is about.
        kind: "zstd", "lz4", or "" for plain, from now on.
        before: until now.
        goodput_bytes_s: of the link, as the caller gave it.
        kept: by kind, the share of the bytes that is left when squeezed, sampled or seen.
        ns_per_byte: by kind that may be used and "" for plain, the predicted time of a byte of the tensor.
        sampled: whether a sample was taken for it.
        reason: why, in words.
    """

    link: str
    tensor: str
    kind: str
    before: str
    goodput_bytes_s: float
    kept: Mapping[str, float]
    ns_per_byte: Mapping[str, float]
    sampled: bool
    reason: str


@dataclass(slots=True)
class _Known:
    """What is known of one tensor on one link."""

    kind: str = PLAIN
    kept: dict[str, float] = field(default_factory=dict)
    sampled_at_bytes_s: float = 0.0
    since_sample: int = 0
    candidate: str = PLAIN
    votes: int = 0


def kept_share(data: memoryview, kind: str) -> float:
    """The share of a sample that is left when squeezed; 1 if it does not shrink."""
    return min(1.0, len(squeeze(data, kind)) / data.nbytes)


class SqueezePolicy:
    """Decides for every tensor and link of one tier; not for several threads at once.

    Args:
        speeds: of this host by kind; asked at the first tensor for which it matters.
        options: see there.
        log: told each decision.
        measure: what `kept_share` does, on data of at least one byte.
    """

    def __init__(
        self,
        speeds: Callable[[], Mapping[str, SqueezeSpeed]] = host_speeds,
        options: SqueezeOptions | None = None,
        log: Callable[[SqueezeDecision], None] = lambda _decision: None,
        measure: Callable[[memoryview, str], float] = kept_share,
    ) -> None:
        self._speeds = speeds
        self._options = options or SqueezeOptions()
        self._log = log
        self._measure = measure
        self._tensors: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def on_link(self, link: str, goodput_bytes_s: float, features: Collection[str]) -> "LinkSqueezer | None":
        """What squeezes tensors for a link, or None if nothing can be: the peer reads no kind, or B is not known yet.

        Args:
            link: what tells it from others.
            goodput_bytes_s: B: acknowledged bytes per second as they were on the wire, squeezed or not; 0 if unknown.
            features: those that the peer named.
        """
        kinds = tuple(kind for kind in KINDS if kind in features)
        return LinkSqueezer(self, link, goodput_bytes_s, kinds) if kinds and goodput_bytes_s > 0 else None

    def choose(self, link: str, tensor: str, data: memoryview, goodput_bytes_s: float, kinds: Collection[str]) -> str:
        """How a tensor is to be sent now: one of `kinds`, or "" for plain.

        Args:
            link, tensor: names.
            data: its bytes.
            goodput_bytes_s: as for `on_link`, over 0.
            kinds: those that the peer reads, out of `KINDS`.
        """
        options = self._options
        if data.nbytes < max(options.least_bytes, options.least_s * goodput_bytes_s):
            return PLAIN
        known = self._known(link, tensor)
        known.since_sample += 1
        speeds = self._speeds()
        able = [kind for kind in kinds if self._may_pay(kind, known, goodput_bytes_s, speeds[kind])]
        sampled = self._sample(known, data, goodput_bytes_s, able)
        times_s = {kind: known.kept[kind] / goodput_bytes_s + speeds[kind].cost_s_per_byte for kind in able}
        shrink = 1 - options.zstd_least_shrink
        times_s = {kind: time_s for kind, time_s in times_s.items() if kind != ZSTD or known.kept[ZSTD] < shrink}
        times_s[PLAIN] = 1 / goodput_bytes_s
        before, reason = known.kind, self._decide(known, times_s)
        if sampled or known.kind != before:
            ns_per_byte = {kind: time_s * 1e9 for kind, time_s in times_s.items()}
            self._log(
                SqueezeDecision(
                    link, tensor, known.kind, before, goodput_bytes_s, dict(known.kept), ns_per_byte, sampled, reason
                )
            )
        return known.kind

    def sent(self, link: str, tensor: str, kind: str, raw_bytes: int, sent_bytes: int) -> None:
        """What became of a tensor that was sent by a kind: more to be trusted than any sample."""
        if raw_bytes:
            self._known(link, tensor).kept[kind] = min(1.0, sent_bytes / raw_bytes)

    def _known(self, link: str, tensor: str) -> _Known:
        known = self._tensors.setdefault((link, tensor), _Known())
        self._tensors.move_to_end((link, tensor))
        if len(self._tensors) > self._options.most_tensors:
            self._tensors.popitem(last=False)
        return known

    def _may_pay(self, kind: str, known: _Known, goodput_bytes_s: float, speed: SqueezeSpeed) -> bool:
        """Whether a kind could be chosen, or kept, if nothing were left of the tensor; else it is not sampled."""
        used, better_by = kind == known.kind, self._options.better_by
        if kind == ZSTD and goodput_bytes_s >= self._options.zstd_below_bytes_s * (1 + better_by * used):
            return False
        return speed.cost_s_per_byte * goodput_bytes_s < (1 if used else 1 - better_by)

    def _sample(self, known: _Known, data: memoryview, goodput_bytes_s: float, able: Collection[str]) -> bool:
        options = self._options
        low, high = sorted((goodput_bytes_s, known.sampled_at_bytes_s))
        changed = high > options.sample_at_change * low and known.since_sample >= options.sample_rests
        due = changed or known.since_sample >= options.sample_every
        wanted = [kind for kind in able if due or kind not in known.kept]
        if not wanted:
            return False
        sample = sample_of(data, options.bytes_sampled(data.nbytes))
        known.kept.update({kind: self._measure(sample, kind) for kind in wanted})
        known.sampled_at_bytes_s, known.since_sample = goodput_bytes_s, 0
        return True

    def _decide(self, known: _Known, times_s: Mapping[str, float]) -> str:
        best = min(times_s, key=lambda kind: (times_s[kind], kind))
        current_s = times_s.get(known.kind)
        if current_s is None or current_s > times_s[PLAIN]:
            known.kind, known.votes = PLAIN, 0
            return "what was used is no longer allowed here" if current_s is None else "plain became faster"
        if times_s[best] > (1 - self._options.better_by) * current_s:
            known.votes = 0
            return f"nothing saves {self._options.better_by:.0%}"
        known.votes = known.votes + 1 if best == known.candidate else 1
        known.candidate = best
        saved = f"{best or 'plain'} saves {1 - times_s[best] / current_s:.0%}"
        if known.votes < self._options.times_in_a_row:
            return f"{saved}, {known.votes} of {self._options.times_in_a_row} times in a row"
        known.kind, known.votes = best, 0
        return saved


@dataclass(frozen=True, slots=True)
class LinkSqueezer:
    """A policy seen from one link at one moment: what `chunks_of` asks."""

    policy: SqueezePolicy
    link: str
    goodput_bytes_s: float
    kinds: tuple[str, ...]

    def kind_for(self, tensor: str, data: memoryview) -> str:
        """How to send a tensor: a kind, or "" for plain."""
        return self.policy.choose(self.link, tensor, data, self.goodput_bytes_s, self.kinds)

    def sent(self, tensor: str, kind: str, raw_bytes: int, sent_bytes: int) -> None:
        """What became of it."""
        self.policy.sent(self.link, tensor, kind, raw_bytes, sent_bytes)


def sample_of(data: memoryview, sample_bytes: int) -> memoryview:
    """At most this many bytes, in a few pieces spread evenly over the data."""
    if data.nbytes <= sample_bytes:
        return data
    piece = sample_bytes // _SAMPLE_PIECES
    last = data.nbytes - piece
    # Pieces begin at multiples of 16 bytes, so that the places of numbers in them are those of the whole.
    starts = [last * at // (_SAMPLE_PIECES - 1) // 16 * 16 for at in range(_SAMPLE_PIECES)]
    return memoryview(b"".join(data[start : start + piece] for start in starts))
