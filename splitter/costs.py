"""What each block costs on each tier, in seconds, joules and dollars, from the device figures.

Seconds are a roofline: work by class at its share of the peak, or bytes at the memory bandwidth, whichever takes
longer, plus a dispatch. Measured seconds can replace the model: `dataclasses.replace(costs, seconds=...)`. Transfers
are in `flagsplit.splitter.rates`, memory in `flagsplit.splitter.evaluate`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import PolicyError
from flagsplit.flagir.blockgraph import OP_CLASSES, Block, BlockGraph
from flagsplit.splitter.devices import Device
from flagsplit.splitter.links import Link

_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_JOULES_PER_BYTE = 8e-9  # from nJ/bit


@dataclass(frozen=True)
class Tier:
    """A place in the line and the device that stands there.

    Attributes:
        name: lower case, such as "phone"; unique in the line.
        device: its figures.
        precision: which peak of the device its target reaches; None takes the device's own default.
    """

    name: str
    device: Device
    precision: str | None = None

    def __post_init__(self) -> None:
        if not _TIER_NAME.fullmatch(self.name):
            raise PolicyError(f"tier {self.name!r}: expected a name such as 'phone': a-z, then a-z, 0-9, - and _")
        if self.precision is not None and self.precision not in self.device.peak_flops:
            known = ", ".join(self.device.peak_flops)
            raise PolicyError(
                f"tier {self.name!r}: {self.device.name} has no peak for {self.precision!r}, only {known}"
            )

    @property
    def peak_flops(self) -> float:
        """FLOP/s at the precision in use."""
        return self.device.peak_flops[self.precision or self.device.precision].value


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
    """

    seconds: NDArray[np.float64]
    invocation_s: NDArray[np.float64]
    power_w: NDArray[np.float64]
    usd_per_s: NDArray[np.float64]
    radio_up_j_per_byte: NDArray[np.float64]
    radio_down_j_per_byte: NDArray[np.float64]


def model_costs(graph: BlockGraph, tiers: Sequence[Tier], links: Sequence[Link]) -> CostModel:
    """The cost model that follows from the device figures alone."""
    devices = [tier.device for tier in tiers]
    up, down = _radio(devices, links)
    return CostModel(
        seconds=np.array([[_block_seconds(block, tier) for tier in tiers] for block in graph.blocks]),
        invocation_s=np.array([device.invocation.value for device in devices]),
        power_w=np.array([device.active_power.value - device.idle_power.value for device in devices]),
        usd_per_s=np.array([device.price.value / 3600 for device in devices]),
        radio_up_j_per_byte=up,
        radio_down_j_per_byte=down,
    )


def _block_seconds(block: Block, tier: Tier) -> float:
    unknown = block.flops.keys() - set(OP_CLASSES)
    if unknown:
        raise PolicyError(f"block {block.name!r}: no device is rated for the work class {sorted(unknown)[0]!r}")
    device = tier.device
    compute = sum(flops / device.efficiency[name].value for name, flops in block.flops.items()) / tier.peak_flops
    traffic = block.read_bytes + block.write_bytes + block.touched_weight_bytes
    return max(compute, traffic / device.memory_bandwidth.value) + device.dispatch.value


def _radio(devices: Sequence[Device], links: Sequence[Link]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Joules per byte for the two ends of each link; a device without a radio for the medium pays nothing."""
    up = np.zeros((len(links), len(devices)))
    down = np.zeros((len(links), len(devices)))
    for i, link in enumerate(links):
        near, far = devices[i].radio.get(link.medium), devices[i + 1].radio.get(link.medium)
        if near is not None:
            up[i, i], down[i, i] = near.up.value * _JOULES_PER_BYTE, near.down.value * _JOULES_PER_BYTE
        if far is not None:
            up[i, i + 1], down[i, i + 1] = far.down.value * _JOULES_PER_BYTE, far.up.value * _JOULES_PER_BYTE
    return up, down
