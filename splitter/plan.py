"""A plan: which tier runs each block, what crosses the links, and what that costs as features phi.

Serial semantics, the same everywhere in the splitter and in the runtime: a request visits the tiers in the order of
`flagsplit.flagir.visits`, from tier 0 and back to it, one segment at a time. Each pass over a link is one message; it
carries what was produced so far and is needed beyond; a tensor crosses a link at most once per direction.
NumPy only: the runtime loads this. How features are computed from a placement is in `flagsplit.splitter.evaluate`.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import BundleError
from flagsplit.splitter import reading
from flagsplit.splitter.state import State

_MOST_BLOCKS = 1 << 24


@dataclass(frozen=True)
class Cut:
    """A value that leaves the tier of its producer in one direction.

    Attributes:
        value: the value's name.
        size_bytes: its size at the nominal dimensions, before any codec.
        from_tier: index of the tier that produces it.
        to_tier: index of the farthest tier in this direction that needs it; those between relay it.
        receivers: indices of all tiers in this direction that need it, ascending.
        codec: the activation codec; "none" sends it as it is.
    """

    value: str
    size_bytes: int
    from_tier: int
    to_tier: int
    receivers: tuple[int, ...]
    codec: str = "none"


@dataclass(frozen=True)
class Features:
    """Phi of a plan over K tiers and L links: the K-1 of the line, then by-passes.

    Attributes:
        tier_seconds: busy seconds of each tier at nominal speed, invocations included.
        up_bytes, down_bytes: by link, away from and towards the first tier.
        up_messages, down_messages: by link.
        tier_joules: energy of each tier above its idle power, radio included, at nominal speed.
        price_usd: price of one request over all tiers, at nominal speed.
        resident_bytes: by tier, weights plus peak of live activations.
        carbon_g: grams of CO2 of one request over all tiers, at nominal speed.
        cold_start_s: by tier, what it takes to get ready; 0 where it runs nothing.
    """

    tier_seconds: tuple[float, ...]
    up_bytes: tuple[float, ...]
    down_bytes: tuple[float, ...]
    up_messages: tuple[float, ...]
    down_messages: tuple[float, ...]
    tier_joules: tuple[float, ...]
    price_usd: float
    resident_bytes: tuple[float, ...]
    carbon_g: float = 0.0
    cold_start_s: tuple[float, ...] = ()

    @property
    def stages(self) -> int:
        """How many entries of `latency_vector`, from its start, occupy a tier or a link."""
        return len(self.tier_seconds) + len(self.up_bytes) + len(self.down_bytes)

    def latency_vector(self) -> NDArray[np.float64]:
        """The features that latency is linear in, in the order of `State.vector`, shape (K + 4L,)."""
        return np.array(
            self.tier_seconds + self.up_bytes + self.down_bytes + self.up_messages + self.down_messages,
            dtype=np.float64,
        )


@dataclass(frozen=True)
class Predicted:
    """A plan's figures at the nominal state.

    Attributes:
        latency_s: serial latency of one request.
        first_tier_energy_j: what it costs the first tier, radio included.
        total_energy_j: what it costs all tiers.
        price_per_1k_usd: price of 1000 requests.
        basis: where the figures come from: "modelled", "emulated" or "measured".
        carbon_per_1k_g: emissions of 1000 requests.
        bottleneck_s: time of the slowest stage, which is the time between two requests of a pipelined stream.
        cold_start_s: what the slowest tier takes to get ready; they do so at the same time.
    """

    latency_s: float
    first_tier_energy_j: float
    total_energy_j: float
    price_per_1k_usd: float
    basis: str = "modelled"
    carbon_per_1k_g: float = 0.0
    bottleneck_s: float = 0.0
    cold_start_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One way to split a graph.

    Attributes:
        name: unique in its pool, such as "all-phone" or "phone+cloud-1".
        tiers: names of all tiers of the line, used or not.
        placement: tier index of each block.
        cuts: what crosses links, by producer, upward before downward.
        features: phi.
        predicted: figures at the nominal state.
        route: indices of the tiers that a request passes; those left out are by-passed. Empty: all.
    """

    name: str
    tiers: tuple[str, ...]
    placement: tuple[int, ...]
    cuts: tuple[Cut, ...]
    features: Features
    predicted: Predicted
    route: tuple[int, ...] = ()

    @cached_property
    def used_tiers(self) -> tuple[int, ...]:
        """Indices of the tiers that run at least one block."""
        return tuple(sorted(set(self.placement)))

    def latency_s(self, state: State) -> float:
        """Serial latency in that state, phi . theta and the waits of the tiers that it uses."""
        waits = sum(state.wait_s[k] for k in self.used_tiers) if state.wait_s else 0.0
        return float(self.features.latency_vector() @ state.vector()) + waits

    def bottleneck_s(self, state: State) -> float:
        """Time of the slowest stage in that state."""
        return float((self.features.latency_vector() * state.vector())[: self.features.stages].max())

    def named_cuts(self) -> list[dict[str, Any]]:
        """The cuts as plain data for people's programs: tiers by name, bytes before any codec."""
        return [
            {
                "value": cut.value,
                "from": self.tiers[cut.from_tier],
                "to": self.tiers[cut.to_tier],
                "bytes": cut.size_bytes,
                "codec": cut.codec,
            }
            for cut in self.cuts
        ]

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return reading.dump(self.to_data())

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read what `to_json` wrote; raises BundleError for anything else."""
        return cls.from_data(reading.parse_object(text, "plan"))

    @classmethod
    def from_data(cls, data: object, where: str = "plan") -> "Plan":
        """Read what `to_data` made; raises BundleError for anything else."""
        record = reading.as_object(data, where)
        reading.only_keys(record, _PLAN_KEYS, where)
        tiers = reading.texts(record, "tiers", where)
        count = len(tiers)
        placement = reading.integers(record, "placement", where, count)
        if not placement or len(placement) > _MOST_BLOCKS:
            raise BundleError(f"{where}.placement: expected 1 to {_MOST_BLOCKS} blocks, got {len(placement)}")
        cuts = reading.array(record, "cuts", where)
        route = reading.integers(record, "route", where, count)
        if route and (route[0] != 0 or list(route) != sorted(set(route)) or not set(placement) <= set(route)):
            raise BundleError(f"{where}.route: expected rising tiers from 0 on, with all that the placement uses")
        return cls(
            name=reading.text(record, "name", where),
            tiers=tiers,
            placement=placement,
            cuts=tuple(_read_cut(cut, count, f"{where}.cuts[{i}]") for i, cut in enumerate(cuts)),
            features=_read_features(record["features"], count, f"{where}.features"),
            predicted=_read_predicted(record["predicted"], f"{where}.predicted"),
            route=route,
        )


_PLAN_KEYS = frozenset(Plan.__dataclass_fields__)


def _read_cut(data: object, tiers: int, where: str) -> Cut:
    record = reading.as_object(data, where)
    reading.only_keys(record, frozenset(Cut.__dataclass_fields__), where)
    return Cut(
        value=reading.text(record, "value", where),
        size_bytes=reading.integer(record["size_bytes"], f"{where}.size_bytes", 1 << 62),
        from_tier=reading.integer(record["from_tier"], f"{where}.from_tier", tiers),
        to_tier=reading.integer(record["to_tier"], f"{where}.to_tier", tiers),
        receivers=reading.integers(record, "receivers", where, tiers),
        codec=reading.text(record, "codec", where),
    )


def _read_features(data: object, tiers: int, where: str) -> Features:
    record = reading.as_object(data, where)
    reading.only_keys(record, frozenset(Features.__dataclass_fields__), where)
    links = max(len(reading.array(record, "up_bytes", where)), tiers - 1)
    return Features(
        tier_seconds=reading.numbers(record, "tier_seconds", where, tiers),
        up_bytes=reading.numbers(record, "up_bytes", where, links),
        down_bytes=reading.numbers(record, "down_bytes", where, links),
        up_messages=reading.numbers(record, "up_messages", where, links),
        down_messages=reading.numbers(record, "down_messages", where, links),
        tier_joules=reading.numbers(record, "tier_joules", where, tiers),
        price_usd=reading.number(record["price_usd"], f"{where}.price_usd"),
        resident_bytes=reading.numbers(record, "resident_bytes", where, tiers),
        carbon_g=reading.number(record["carbon_g"], f"{where}.carbon_g"),
        cold_start_s=reading.numbers(record, "cold_start_s", where, tiers if record["cold_start_s"] else 0),
    )


def _read_predicted(data: object, where: str) -> Predicted:
    record = reading.as_object(data, where)
    reading.only_keys(record, frozenset(Predicted.__dataclass_fields__), where)
    basis = reading.text(record, "basis", where)
    if basis not in {"modelled", "emulated", "measured"}:
        raise BundleError(f"{where}.basis: expected modelled, emulated or measured, got {basis!r:.40}")
    return Predicted(
        latency_s=reading.number(record["latency_s"], f"{where}.latency_s"),
        first_tier_energy_j=reading.number(record["first_tier_energy_j"], f"{where}.first_tier_energy_j"),
        total_energy_j=reading.number(record["total_energy_j"], f"{where}.total_energy_j"),
        price_per_1k_usd=reading.number(record["price_per_1k_usd"], f"{where}.price_per_1k_usd"),
        basis=basis,
        carbon_per_1k_g=reading.number(record["carbon_per_1k_g"], f"{where}.carbon_per_1k_g"),
        bottleneck_s=reading.number(record["bottleneck_s"], f"{where}.bottleneck_s"),
        cold_start_s=reading.number(record["cold_start_s"], f"{where}.cold_start_s"),
    )
