"""The SLA: what the user wants of a split, as frozen data.

Only the shape is checked here; whether the tiers and values that it names exist is checked where it meets a graph, in
`flagsplit.splitter.constraints`. The JSON schema is `SLA.model_json_schema()`, examples are in `docs/sla.md`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flagsplit.errors import PolicyError

INPUTS = "inputs"
"""The key of `SLA.keep_on` that stands for every input of the graph."""

BYTES_PER_MB = 1_000_000

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Frozen):
    """Weights of what is minimized: `latency` x seconds + `price` x USD per 1000 requests + `energy` x joules."""

    latency: _Weight = Field(default=1.0, description="Weight of one second of latency of one request.")
    price: _Weight = Field(
        default=0.0, description="Weight of one USD per 1000 requests, in seconds where latency is 1."
    )
    energy: _Weight = Field(default=0.0, description="Weight of one joule per request, in seconds where latency is 1.")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.latency == self.price == self.energy == 0:
            raise ValueError("all weights are 0, so every plan is equally good: give one a value above 0")
        return self


class Bounds(_Frozen):
    """Limits that a plan must keep at the nominal state of devices and links; absent means no limit."""

    latency_ms: _Bound | None = Field(default=None, description="Serial latency of one request, milliseconds.")
    energy_mj: _Bound | None = Field(
        default=None, description="Energy of one request in millijoules; see `energy_scope`."
    )
    price_per_1k_usd: _Bound | None = Field(
        default=None, description="Price of 1000 requests over all tiers, US dollars."
    )


class SLA(_Frozen):
    """Policy for one model: objective, bounds, memory, privacy and preferences. The default asks for least latency."""

    objective: Objective = Field(default=Objective(), description="What to minimize.")
    bounds: Bounds = Field(default=Bounds(), description="What to stay below.")
    memory_mb: dict[str, _Bound] = Field(
        default_factory=dict,
        description="Cap by tier on weights plus peak activations, in 10^6 bytes. Absent: the device's own memory.",
    )
    keep_on: dict[str, str] = Field(
        default_factory=dict,
        description="Privacy, value name (or 'inputs') to tier: the value never leaves that tier.",
    )
    pins: dict[str, str] = Field(
        default_factory=dict,
        description="Glob over node names, or an operator type, to the tier that must run all blocks it matches.",
    )
    forbid_tiers: tuple[str, ...] = Field(default=(), description="Tiers that run no block; they may still relay.")
    energy_scope: Literal["first", "all"] = Field(
        default="first",
        description="Whose energy counts: the first tier's (the one with the battery) or that of all tiers.",
    )

    def without_limits(self) -> "SLA":
        """The same wishes without bounds, memory caps and privacy: what the user pays for those."""
        return self.model_copy(update={"bounds": Bounds(), "memory_mb": {}, "keep_on": {}})


def parse_sla(data: str | bytes | Mapping[str, Any], origin: str = "SLA") -> SLA:
    """Read an SLA from JSON text or plain data.

    Args:
        data: JSON, or what `json.loads` makes of it.
        origin: name for error messages, such as the file's path.

    Raises:
        PolicyError: not JSON, an unknown field, or a value out of range; one line that names the field.
    """
    try:
        return SLA.model_validate(json.loads(data) if isinstance(data, str | bytes) else dict(data))
    except ValidationError as error:
        raise PolicyError(f"{origin}: {first_problem(error)}") from None
    except ValueError as error:
        raise PolicyError(f"{origin}: expected JSON, {error}") from None


def first_problem(error: ValidationError) -> str:
    """One line for the first thing that pydantic found wrong."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    got = problem["input"]
    shown = f" (got {got!r})" if isinstance(got, str | int | float) else ""
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"
