"""Bounds of the SLA that are looked at again at run time: price, energy and carbon of a request in the state of now.

All that the build ships keeps the bounds at the nominal state. A tier that has slowed down is paid for longer, and a
radio sends longer over a slow link, so a plan may come to break one. Each bound is linear in the state, like latency.
Made in `flagsplit.splitter.pool_builder`, used by `flagsplit.splitter.pool`; NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagsplit.errors import BundleError, PolicyError
from flagsplit.splitter import reading
from flagsplit.splitter.plan import Plan

ROUNDING = 1e-9
"""Relative: what the arithmetic of a measure can leave."""


@dataclass(frozen=True)
class PoolBound:
    """One bound. A plan's value is `fixed` plus phi times theta, each product weighted by `rates`.

    Attributes:
        name: as in the SLA: "price_per_1k_usd", "energy_mj" or "carbon_per_1k_g".
        limit: what is allowed, in the bound's unit.
        fixed: by plan, what does not change with the state, in that unit.
        rates: unit per second of each entry of `Features.latency_vector`, shape (K + 4L,).
    """

    name: str
    limit: float
    fixed: Mapping[str, float]
    rates: tuple[float, ...]

    def parts(self, plans: Sequence[Plan]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Shares of the limit: fixed (m,), and by feature per unit of the state, (m, K + 4L).

        Raises:
            PolicyError: a figure is missing, or the limit is not above 0.
        """
        missing = [plan.name for plan in plans if plan.name not in self.fixed]
        if missing or not self.limit > 0 or len(self.rates) != len(plans[0].features.latency_vector()):
            raise PolicyError(
                f"bound {self.name}: expected a limit above 0, a figure for each plan, a rate for each feature"
            )
        fixed = np.array([self.fixed[plan.name] for plan in plans])
        phi = np.array([plan.features.latency_vector() for plan in plans])
        return fixed / self.limit, phi * np.array(self.rates) / self.limit

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "fixed": dict(self.fixed)}

    @classmethod
    def from_data(cls, data: object, where: str) -> "PoolBound":
        """Read what `to_data` made; raises BundleError for anything else."""
        record = reading.as_object(data, where)
        reading.only_keys(record, frozenset(cls.__dataclass_fields__), where)
        fixed = reading.as_object(record["fixed"], f"{where}.fixed")
        rates = reading.array(record, "rates", where)
        limit = reading.number(record["limit"], f"{where}.limit")
        if limit == 0:
            raise BundleError(f"{where}.limit: expected a number above 0")
        return cls(
            name=reading.text(record, "name", where),
            limit=limit,
            fixed={plan: reading.number(value, f"{where}.fixed.{plan:.64}") for plan, value in fixed.items()},
            rates=reading.numbers(record, "rates", where, len(rates)),
        )
