"""What a decoder service can serve of a bundle: the plans whose loop runs on its tier."""

from collections.abc import Callable, Mapping
from pathlib import Path

from flagsplit.apps.decoder_service.program_source import HIDDEN, ProgramSource, folder_source
from flagsplit.apps.models import is_bundle
from flagsplit.apps.programs import program_folder
from flagsplit.errors import ConfigError
from flagsplit.runtime.bundle import Bundle, open_bundle
from flagsplit.runtime.program_parts import PlanParts, ProgramParts
from flagsplit.targets.interface import Array, Executable, LoadOptions, TensorSpec


def open_source(given: str, tier: str, plan: str = "") -> ProgramSource:
    """What can be served of a bundle, of a program's folder, or of a program of the zoo.

    Args:
        given: path of a bundle or a folder, or `zoo:NAME`.
        tier: the tier that serves.
        plan: of a bundle, the one plan to serve; "" serves all that do not divide the layers of a decoder.

    Raises:
        BundleError, ModelError: it is damaged, or has no program.
        ConfigError: there is no such program or tier, or a plan of what has none.
        PolicyError: no stream can be served under that plan.
    """
    if is_bundle(Path(given)):
        return bundle_source(open_bundle(Path(given)), tier, plan)
    if plan:
        raise ConfigError(f"--plan {plan}: a program has no plans, only a bundle has; leave it out")
    return folder_source(program_folder(given), ("phone", tier))


def bundle_source(bundle: Bundle, tier: str, plan: str = "") -> ProgramSource:
    """What a tier can serve of a bundle's program; arguments and errors as for `open_source`."""
    parts, index = bundle.program, bundle.tier_index(tier)
    if parts is None:
        raise ConfigError(f"{bundle.path} has no program, only a model; use flagsplit serve, or build it of a program")
    name = f"{parts.facts.name} of {bundle.path.name}"
    if plan:
        chosen = parts.plan(plan)
        if chosen.loop_tier != index:
            raise ConfigError(f"the loop of plan {plan} runs on {bundle.tiers[chosen.loop_tier]}, not on {tier}")
        plans = {plan: chosen}
    else:
        plans = {each: found for each, found in parts.plans.items() if found.loop_tier == index and not found.layers}
    if not plans:
        divided = [each for each, found in parts.plans.items() if found.loop_tier == index and found.layers]
        todo = f"name one that divides the layers: --plan {' or '.join(divided)}" if divided else "serve another tier"
        raise ConfigError(f"no plan of {bundle.path} has its whole loop on {tier}; {todo}")
    return ProgramSource(
        name,
        bundle.digest,
        bundle.tiers,
        parts.facts,
        {each: _boundary(found) for each, found in plans.items()},
        parts.folder,
        {each: _opener(parts, each, found) for each, found in plans.items() if found.boundary and not found.layers},
        step=next(iter(plans.values())).rest or "step.onnx",
        weights=parts.weights,
        takes_rows=any(found.layers for found in plans.values()),
        specs={
            each: tuple(TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in found.boundary)
            for each, found in plans.items()
            if not found.layers
        },
    )


def _boundary(found: PlanParts) -> tuple[str, ...]:
    return () if found.layers else tuple(tensor.name for tensor in found.boundary)


def _opener(parts: ProgramParts, plan: str, found: PlanParts) -> Callable[[LoadOptions], Executable]:
    def opened(host: LoadOptions) -> Executable:
        return parts.load_hidden(plan, host) or _Renamed(found.boundary[0].name)

    return opened


class _Renamed:
    """Hidden states that cross a cut under another name."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, name: str) -> None:
        self._name = name

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The same array."""
        return {HIDDEN: tensors[self._name]}

    def close(self) -> None:
        """Nothing to free."""
