"""What each block costs on each tier, in seconds, joules and dollars, from the device figures.

Seconds are a roofline: work by class at its share of the peak, or bytes at the memory bandwidth, whichever takes
longer, plus a dispatch. A loop moves its weights and its state anew in each trip, and each of its contractions is a
dispatch. Measured seconds can replace the model: `dataclasses.replace(costs, seconds=...)`. Transfers
are in `flagsplit.splitter.rates`, memory in `flagsplit.splitter.evaluate`.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import OP_CLASSES, Block, BlockGraph
from flagsplit.splitter.codecs import CODEC_COSTS
from flagsplit.splitter.devices import Device, Radio
from flagsplit.splitter.links import Link

_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_JOULES_PER_BYTE = 8e-9  # from nJ/bit
_JOULES_PER_KWH = 3.6e6
_WORLD_G_PER_KWH = 481.0  # data/regions.json
_BY_TIER = ("invocation_s", "power_w", "usd_per_s", "carbon_g_per_j", "load_s_per_byte", "load_s")
_BY_LINK = ("radio_up_j_per_byte", "radio_down_j_per_byte", "radio_tail_w", "radio_tail_s")


@dataclass(frozen=True)
class Tier:
    """A place in the line and the device that stands there.

    Attributes:
        name: lower case, such as "phone"; unique in the line.
        device: its figures.
        precision: which peak of the device its target reaches; None takes the device's own default.
        target: the compiler back end; None takes the device's own default.
        region: where it draws its power, as the catalogue names it, with the hour if that counts.
        carbon_g_per_kwh: emissions of that power.
    """

    name: str
    device: Device
    precision: str | None = None
    target: str | None = None
    region: str = "WORLD"
    carbon_g_per_kwh: float = _WORLD_G_PER_KWH

    def __post_init__(self) -> None:
        if not _TIER_NAME.fullmatch(self.name):
            raise PolicyError(f"tier {self.name!r}: expected a name such as 'phone': a-z, then a-z, 0-9, - and _")
        if self.precision is not None and self.precision not in self.device.peak_flops:
            known = ", ".join(self.device.peak_flops)
            raise PolicyError(
                f"tier {self.name!r}: {self.device.name} has no peak for {self.precision!r}, only {known}"
            )

        if not (math.isfinite(self.carbon_g_per_kwh) and self.carbon_g_per_kwh >= 0):
            got = self.carbon_g_per_kwh
            raise PolicyError(f"tier {self.name!r}: carbon_g_per_kwh must be 0 or more and finite, got {got}")

    @property
    def target_name(self) -> str:
        """The compiler back end in use."""
        return self.target or self.device.target

    @property
    def peak_flops(self) -> float:
        """FLOP/s at the precision in use."""
        return self.device.peak_flops[self.precision or self.device.precision].value


@dataclass(frozen=True)
class Handicaps:
    """What keeps the blocks of a tier from running as fast as its target's accelerator could.

    Attributes:
        beside: the blocks that run on the CPU although the tier's target is for an accelerator: they take the CPU's
            rate, and two hand-overs of one dispatch each.
        extra_bytes: what the accelerator moves for a block beside reading and writing each tensor once.
    """

    beside: Collection[int] = ()
    extra_bytes: Mapping[int, float] = field(default_factory=dict)


_NONE = Handicaps()


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of a graph's blocks over K tiers, and of what links two tiers.

    Attributes:
        seconds: by block and tier, shape (blocks, K), dispatch included.
        invocation_s: by tier; one for each message that the tier acts on; tier 0 also takes up the request.
        power_w: by tier, active above idle.
        usd_per_s: by tier, price of a busy second.
        radio_up_j_per_byte, radio_down_j_per_byte: shape (K-1, K): what a byte over link i, away from or towards the
            first tier, costs each tier.
        radio_tail_w, radio_tail_s: shape (K-1, K): what the radio of each tier draws after a message over link i, and
            for how long unless the next one comes sooner.
        carbon_g_per_j: by tier.
        load_s_per_byte, load_s: by tier, a cold start's seconds per byte of weights, and what it takes beside.
        encode_s_per_byte, decode_s_per_byte: by lossy codec and tier, per byte of the value as it is.
    """

    seconds: NDArray[np.float64]
    invocation_s: NDArray[np.float64]
    power_w: NDArray[np.float64]
    usd_per_s: NDArray[np.float64]
    radio_up_j_per_byte: NDArray[np.float64]
    radio_down_j_per_byte: NDArray[np.float64]
    radio_tail_w: NDArray[np.float64]
    radio_tail_s: NDArray[np.float64]
    carbon_g_per_j: NDArray[np.float64]
    load_s_per_byte: NDArray[np.float64]
    load_s: NDArray[np.float64]
    encode_s_per_byte: Mapping[str, NDArray[np.float64]]
    decode_s_per_byte: Mapping[str, NDArray[np.float64]]


def check_costs(costs: CostModel, blocks: int, tiers: int) -> None:
    """Raise PolicyError unless every figure is finite and 0 or more, in the shape that a problem of that size needs."""
    by_link = dict.fromkeys(_BY_LINK, (tiers - 1, tiers))
    shapes = {"seconds": (blocks, tiers)} | dict.fromkeys(_BY_TIER, (tiers,)) | by_link
    figures = {name: (getattr(costs, name), shape) for name, shape in shapes.items()}
    for name in ("encode_s_per_byte", "decode_s_per_byte"):
        by_codec = getattr(costs, name)
        figures |= {f"{name}.{codec}": (by_codec[codec], (tiers,)) for codec in by_codec}
    for name, (figure, shape) in figures.items():
        if np.shape(figure) != shape:
            raise PolicyError(f"costs.{name}: expected the shape {shape}, came {np.shape(figure)}")
        if not (np.isfinite(figure) & (np.asarray(figure) >= 0)).all():
            raise PolicyError(f"costs.{name}: every figure must be finite and 0 or more")


def model_costs(
    graph: BlockGraph,
    tiers: Sequence[Tier],
    links: Sequence[Link],
    handicaps: Mapping[str, Handicaps] | None = None,
) -> CostModel:
    """The cost model that follows from the device figures alone.

    Args:
        graph: blocks and values.
        tiers: the line.
        links: what joins them.
        handicaps: by tier name.
    """
    handicaps = handicaps or {}
    devices = [tier.device for tier in tiers]
    bandwidth = np.array([device.memory_bandwidth.value for device in devices])
    return CostModel(
        seconds=np.array(
            [[_block_seconds(block, tier, handicaps.get(tier.name, _NONE)) for tier in tiers] for block in graph.blocks]
        ),
        invocation_s=np.array([device.invocation.value for device in devices]),
        power_w=np.array([device.active_power.value - device.idle_power.value for device in devices]),
        usd_per_s=np.array([device.price.value / 3600 for device in devices]),
        **_radio_costs(devices, links),
        carbon_g_per_j=np.array([tier.carbon_g_per_kwh for tier in tiers]) / _JOULES_PER_KWH,
        load_s_per_byte=np.array([1 / device.load_bandwidth.value for device in devices]),
        load_s=np.array([device.load_latency.value for device in devices]),
        encode_s_per_byte={name: cost.encode_passes / bandwidth for name, cost in CODEC_COSTS.items()},
        decode_s_per_byte={name: cost.decode_passes / bandwidth for name, cost in CODEC_COSTS.items()},
    )


def _block_seconds(block: Block, tier: Tier, handicaps: Handicaps) -> float:
    unknown = block.flops.keys() - set(OP_CLASSES)
    if unknown:
        raise PolicyError(f"block {block.name!r}: no device is rated for the work class {sorted(unknown)[0]!r}")
    device, beside = tier.device, block.index in handicaps.beside
    peak = device.peak_flops[device.precision].value if beside else tier.peak_flops
    compute = sum(flops / device.efficiency[name].value for name, flops in block.flops.items()) / peak
    extra_bytes = 0.0 if beside else handicaps.extra_bytes.get(block.index, 0.0)
    traffic = block.read_bytes + block.write_bytes + block.touched_weight_bytes + extra_bytes
    traffic += sum(loop.traffic_bytes for loop in block.loops)
    dispatches = 1 + sum(loop.trips * loop.launches for loop in block.loops) + (2 if beside else 0)
    return max(compute, traffic / device.memory_bandwidth.value) + device.dispatch.value * dispatches


def on_other_links(
    costs: CostModel, tiers: Sequence[int], devices: Sequence[Device], links: Sequence[Link]
) -> CostModel:
    """The costs of a shorter line: only some of the tiers, joined by these links.

    Args:
        costs: of the whole line.
        tiers: indices of the tiers that are kept.
        devices: the devices of those.
        links: what joins them.
    """
    kept = list(tiers)
    return CostModel(
        seconds=costs.seconds[:, kept],
        **{name: getattr(costs, name)[kept] for name in _BY_TIER},
        **_radio_costs(devices, links),
        encode_s_per_byte={name: seconds[kept] for name, seconds in costs.encode_s_per_byte.items()},
        decode_s_per_byte={name: seconds[kept] for name, seconds in costs.decode_s_per_byte.items()},
    )


_OfRadio = Callable[[Radio], float]


def _radio_costs(devices: Sequence[Device], links: Sequence[Link]) -> dict[str, NDArray[np.float64]]:
    """The fields of a cost model that come from radios; who sends up receives down at the other end."""

    def both(near: _OfRadio, far: _OfRadio) -> NDArray[np.float64]:
        return _radios(devices, links, near, 0) + _radios(devices, links, far, 1)

    return {
        "radio_up_j_per_byte": both(_send, _receive) * _JOULES_PER_BYTE,
        "radio_down_j_per_byte": both(_receive, _send) * _JOULES_PER_BYTE,
        "radio_tail_w": both(_tail_w, _tail_w),
        "radio_tail_s": both(_tail_s, _tail_s),
    }


def _radios(devices: Sequence[Device], links: Sequence[Link], figure: _OfRadio, end: int) -> NDArray[np.float64]:
    """For each link and tier a figure of the radio at one end; a device without one for the medium has 0."""
    found = np.zeros((len(links), len(devices)))
    for i, link in enumerate(links):
        radio = devices[i + end].radio.get(link.medium)
        found[i, i + end] = 0.0 if radio is None else figure(radio)
    return found


def _send(radio: Radio) -> float:
    return radio.up.value


def _receive(radio: Radio) -> float:
    return radio.down.value


def _tail_w(radio: Radio) -> float:
    return radio.tail_power.value if radio.tail_power is not None else 0.0


def _tail_s(radio: Radio) -> float:
    return radio.tail.value if radio.tail is not None else 0.0
