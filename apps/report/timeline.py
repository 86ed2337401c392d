"""One request of a plan in time, one thing after the other: its latency, laid out over tiers and links.

Which tensors a message carries comes from `flagsplit.splitter.simulator`; this adds what codecs do to bytes and to the
tiers at both ends. The spans are those of the plan's predicted latency and add up to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flagsplit.splitter.plan import Plan
from flagsplit.splitter.problem import Problem
from flagsplit.splitter.routes import Route, route_through
from flagsplit.splitter.simulator import simulate_request
from flagsplit.splitter.timeline import Interval


@dataclass(frozen=True)
class Span:
    """Something that lasts.

    Attributes:
        row: a tier's name, or two with an arrow between for a link in one direction.
        what: a block, a message or a codec's work.
        start_s, end_s: seconds since the request came.
        carries: names of the values of a message.
    """

    row: str
    what: str
    start_s: float
    end_s: float
    carries: tuple[str, ...] = ()


def serial_spans(problem: Problem, plan: Plan) -> tuple[Span, ...]:
    """The spans of one request at the nominal state, in order and without gaps."""
    route = route_through(problem, plan.route or range(len(problem.tiers)))
    walk = _Walk(route, plan)
    state = route.state(problem.nominal)
    placement = route.from_whole_line(plan.placement)
    for each in simulate_request(route.problem, placement, state, overlap=False).intervals:
        walk.add(each)
    return tuple(walk.spans)


class _Walk:
    def __init__(self, route: Route, plan: Plan) -> None:
        self._problem, self._plan = route.problem, plan
        self._nominal = route.problem.nominal
        self._names = route.problem.tier_names
        self._values = {value.name: value for value in route.problem.graph.values}
        self._codec = {(cut.value, cut.to_tier > cut.from_tier): cut.codec for cut in plan.cuts}
        self._made = {cut.value: plan.tiers[cut.from_tier] for cut in plan.cuts}
        self._needed = {
            (cut.value, cut.to_tier > cut.from_tier): {plan.tiers[k] for k in cut.receivers} for cut in plan.cuts
        }
        self._encoded: set[tuple[str, str]] = set()
        self._now = 0.0
        self.spans: list[Span] = []

    def add(self, each: Interval) -> None:
        near, arrow, far = each.resource.partition("->")
        if not arrow:
            self._span(each.resource, each.what, each.end_s - each.start_s)
            return
        up = self._names.index(far) > self._names.index(near)
        for name, seconds in self._coding(each, near, up, encode=True):
            self._span(near, f"encode {name}", seconds)
        link = min(self._names.index(near), self._names.index(far))
        per_byte = (self._nominal.up_s_per_byte if up else self._nominal.down_s_per_byte)[link]
        size = sum(self._size(name, up) for name in each.carries)
        self._span(f"{near} → {far}", each.what, size * per_byte + each.arrives_s - each.end_s, each.carries)
        for name, seconds in self._coding(each, far, up, encode=False):
            self._span(far, f"decode {name}", seconds)

    def _span(self, row: str, what: str, seconds: float, carries: tuple[str, ...] = ()) -> None:
        self.spans.append(Span(row, what, self._now, self._now + seconds, carries))
        self._now += seconds

    def _size(self, name: str, up: bool) -> float:
        codec = self._codec.get((name, up), "none")
        value = self._values[name]
        return float(value.size_bytes if codec == "none" else value.codec_bytes[codec])

    def _coding(self, each: Interval, tier: str, up: bool, *, encode: bool) -> Iterator[tuple[str, float]]:
        """What codecs cost a tier at one end of a message."""
        costs, k = self._problem.costs, self._names.index(tier)
        for name in each.carries:
            codec = self._codec.get((name, up), "none")
            if codec == "none":
                continue
            size = self._values[name].size_bytes
            if encode and self._made[name] == tier and (name, codec) not in self._encoded:
                self._encoded.add((name, codec))
                yield name, size * float(costs.encode_s_per_byte[codec][k])
            if not encode and tier in self._needed[name, up]:
                yield name, size * float(costs.decode_s_per_byte[codec][k])
