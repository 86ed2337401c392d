"""The SLA: what the user wants of a split, as frozen data.

Only the shape is checked here; whether the tiers and values that it names exist is checked where it meets a graph, in
`flagsplit.splitter.constraints`. The JSON schema is `SLA.model_json_schema()`, examples are in `docs/sla.md`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flagsplit.errors import PolicyError

INPUTS = "inputs"
"""The key of `SLA.keep_on` that stands for every input of the graph."""

BYTES_PER_MB = 1_000_000
_LONGEST = 200  # characters of a name or a value in a message

Mode = Literal["prefer_on_device", "only_on_device", "prefer_in_cloud", "only_in_cloud"]
"""Where whole requests run: on the first tier ("device") or on the last ("cloud")."""

_LEAST, _MOST = 1e-12, 1e15  # far beyond all that is real, and sums and quotients of such figures are numbers


def _zero_or_more_than_the_least(weight: float) -> float:
    if 0 < weight < _LEAST:
        raise ValueError(f"expected 0, or {_LEAST:g} and more")
    return weight


_Weight = Annotated[
    float, Field(ge=0, le=_MOST, allow_inf_nan=False, strict=True), AfterValidator(_zero_or_more_than_the_least)
]
_Bound = Annotated[float, Field(ge=_LEAST, le=_MOST, allow_inf_nan=False, strict=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Frozen):
    """What is minimized.

    For the goal "latency": `latency` x seconds + `price` x USD per 1000 requests + `energy` x joules + `carbon` x
    grams of CO2 per 1000 requests. For "throughput": the time of the slowest stage, which is how often a stream of
    requests can be fed; among plans that are equal in it, the weighted sum decides.
    """

    goal: Literal["latency", "throughput"] = Field(
        default="latency", description="Least weighted sum, or most requests per second in a pipelined stream."
    )
    latency: _Weight = Field(default=1.0, description="Weight of one second of latency of one request.")
    price: _Weight = Field(
        default=0.0, description="Weight of one USD per 1000 requests, in seconds where latency is 1."
    )
    energy: _Weight = Field(default=0.0, description="Weight of one joule per request, in seconds where latency is 1.")
    carbon: _Weight = Field(
        default=0.0, description="Weight of one gram of CO2 per 1000 requests, in seconds where latency is 1."
    )

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.latency == self.price == self.energy == self.carbon == 0:
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
    carbon_per_1k_g: _Bound | None = Field(
        default=None, description="Emissions of 1000 requests over all tiers, grams of CO2."
    )
    cold_start_ms: _Bound | None = Field(
        default=None, description="Time in which each tier must be able to load its weights, milliseconds."
    )


class Fidelity(_Frozen):
    """Which activation codecs a cut may use. Without one, tensors travel as they are."""

    codecs: tuple[str, ...] | None = Field(
        default=None, description="Codecs that are allowed beside 'none'; absent: any that `min_snr_db` lets through."
    )
    min_snr_db: float | None = Field(
        default=None,
        allow_inf_nan=False,
        strict=True,
        description="Floor on a codec's signal-to-noise ratio on pretrained activations, decibels (docs/sla.md).",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.codecs is None and self.min_snr_db is None:
            raise ValueError("expected codecs, min_snr_db or both, got neither")
        return self


class Accuracy(_Frozen):
    """How faithful boundary tensors must be."""

    every_cut: Fidelity | None = Field(default=None, description="Of every cut; absent: exact.")
    cuts: dict[str, Fidelity] = Field(
        default_factory=dict, description="Glob over value names to the fidelity of those; the first that matches."
    )


class SLA(_Frozen):
    """Policy for one model: objective, bounds, caps, privacy and preferences. The default asks for least latency."""

    objective: Objective = Field(default=Objective(), description="What to minimize.")
    bounds: Bounds = Field(default=Bounds(), description="What to stay below.")
    requests_per_s: _Bound | None = Field(
        default=None, description="How often requests come. No tier and no link may be busier than that allows."
    )
    memory_mb: dict[str, _Bound] = Field(
        default_factory=dict,
        description="Cap by tier on weights plus peak activations, in 10^6 bytes. Absent: the device's own memory.",
    )
    streams: dict[str, Annotated[int, Field(ge=1, le=1_000_000, strict=True)]] = Field(
        default_factory=dict,
        description="How many requests a tier has in its loops at once, by tier, the state of all held. Absent: one.",
    )
    power_w: dict[str, _Bound] = Field(
        default_factory=dict,
        description="Cap by tier on average power above idle at `requests_per_s`, radio included, watts.",
    )
    keep_on: dict[str, str] = Field(
        default_factory=dict,
        description="Privacy, value name (or 'inputs') to tier: the value never leaves that tier.",
    )
    min_blocks_deep: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Privacy: what leaves the first tier has gone through at least so many blocks.",
    )
    accuracy: Accuracy = Field(default=Accuracy(), description="Which lossy codecs cuts may use.")
    pins: dict[str, str] = Field(
        default_factory=dict,
        description="Glob over node names, or an operator type, to the tier that must run all blocks it matches.",
    )
    mode: Mode | None = Field(
        default=None,
        description="Whole requests on the first tier or on the last: only there, or there whenever the rest allows.",
    )
    forbid_tiers: tuple[str, ...] = Field(default=(), description="Tiers that run no block; they may still relay.")
    forbid_vendors: tuple[str, ...] = Field(default=(), description="Vendors whose devices run no block.")
    forbid_targets: tuple[str, ...] = Field(default=(), description="Targets (compiler back ends) that run no block.")
    use_tiers: tuple[str, ...] = Field(default=(), description="Tiers that must run at least one block.")
    prefer_tiers: tuple[str, ...] = Field(default=(), description="Tiers to run as much as possible on.")
    prefer_vendors: tuple[str, ...] = Field(default=(), description="Vendors to run as much as possible on.")
    prefer_targets: tuple[str, ...] = Field(default=(), description="Targets to run as much as possible on.")
    prefer_within: _Weight = Field(
        default=0.1, description="What preferences may cost: the objective may be worse by this share."
    )
    energy_scope: Literal["first", "all"] = Field(
        default="first",
        description="Whose energy counts: the first tier's (the one with the battery) or that of all tiers.",
    )

    @model_validator(mode="after")
    def _rules_fit_together(self) -> Self:
        if self.power_w and self.requests_per_s is None:
            raise ValueError("power_w needs requests_per_s: power is energy per request times how often they come")
        unused = set(self.use_tiers) & set(self.forbid_tiers)
        if unused:
            raise ValueError(f"use_tiers and forbid_tiers both name {min(unused)!r}: drop it from one of them")
        for what in ("tiers", "vendors", "targets"):
            both = set(getattr(self, f"forbid_{what}")) & set(getattr(self, f"prefer_{what}"))
            if both:
                raise ValueError(f"forbid_{what} and prefer_{what} both name {min(both)!r}: drop it from one of them")
        return self

    @property
    def has_preferences(self) -> bool:
        """Whether it prefers some tiers, vendors or targets."""
        return bool(self.prefer_tiers or self.prefer_vendors or self.prefer_targets)

    def without_limits(self) -> "SLA":
        """The same wishes without bounds, caps and privacy: what the user pays for those."""
        free: dict[str, Any] = {"bounds": Bounds(), "memory_mb": {}, "power_w": {}, "keep_on": {}}
        return self.model_copy(update={**free, "min_blocks_deep": 0, "requests_per_s": None})


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
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{origin}: expected JSON, {error}") from None


def first_problem(error: ValidationError) -> str:
    """One line for the first thing that pydantic found wrong."""
    problem = error.errors(include_url=False)[0]
    where = _plain(".".join(str(part) for part in problem["loc"]))[:_LONGEST]
    got = problem["input"]
    shown = f" (got {got!r:.{_LONGEST}})" if isinstance(got, str | int | float) else ""
    message = _plain(problem["msg"].removeprefix("Value error, "))
    if problem["type"] == "greater_than_equal" and problem["ctx"]["ge"] == _LEAST:
        message = "Input should be greater than 0"
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def _plain(text: str) -> str:
    """Text from a file as one line of characters that can be printed."""
    return text if text.isprintable() else repr(text)[1:-1]
