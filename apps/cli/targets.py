"""`flagsplit targets`: the compiler back ends, what they take, and whether they can compile and run here."""

from typing import Any

from flagsplit.apps.cli.common_options import AsJson
from flagsplit.apps.cli.output import console, print_json, say, table
from flagsplit.targets.catalogue import TARGETS, get_target, missing_sdk


def command(
    as_json: AsJson = False,
) -> None:
    """List the targets: compiler back ends that tiers can be built for."""
    described = [_data(name) for name in TARGETS]
    if as_json:
        print_json({"targets": described})
        return
    out = console()
    rows = [
        (
            each["name"],
            each["version"],
            "no" if each["missing"] else "yes",
            each["runs_here"],
            "fixed" if each["static_shapes"] else "any",
            each["max_rank"],
            "; ".join(
                [
                    *(f"{name}: {', '.join(values)}" for name, values in each["choices"].items()),
                    *(f"{name}: {form}" for name, form in each["free_choices"].items()),
                ]
            ),
        )
        for each in described
    ]
    columns = ("target", "version", "compiles here", "runs here", "shapes", "rank", "choices, the default first")
    out.print(table("Targets", columns, rows, left=5))
    for each in described:
        if each["missing"]:
            say(out, f"{each['name']}: {each['missing']}")


def _data(name: str) -> dict[str, Any]:
    description = get_target(name).describe()
    return {
        "name": name,
        "version": description.version,
        "missing": missing_sdk(name),
        "runs_here": description.runs_here,
        "dtypes": list(description.dtypes),
        "max_rank": description.max_rank,
        "static_shapes": description.static_shapes,
        "choices": {choice: list(values) for choice, values in description.choices.items()},
        "free_choices": dict(description.free_choices),
        "source": description.source,
        "confidence": description.confidence,
    }
