"""Real bundles with codecs, run segment by segment: whatever a codec cannot carry is caught where it is encoded."""

from pathlib import Path

import numpy as np
import pytest
from tests.apps import lossy
from tests.apps.models import Array

from flagsplit.flagir.codecs import read_encoded_name
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.codec_check import check_encoded
from flagsplit.targets.interface import LoadOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]


class Line:
    """All tiers of a bundle in this process."""

    def __init__(self, bundle: Bundle, plan: str) -> None:
        self._steps = bundle.plans.steps[plan]
        self._loaded = [bundle.load(step.tier, step.segment, LoadOptions(threads=1)) for step in self._steps]

    def first_reason(self, x: Array) -> tuple[int, str] | None:
        """The step after which something is wrong, and what."""
        values = {"x": x}
        for at, (step, executable) in enumerate(zip(self._steps, self._loaded, strict=True)):
            made = executable.run({name: values[name] for name in step.inputs})
            reason = check_encoded(made)
            if reason is not None:
                return at, reason
            values.update(made)
        return None

    def close(self) -> None:
        for executable in self._loaded:
            executable.close()


@pytest.mark.parametrize("codec", lossy.CODECS)
def test_what_a_codec_cannot_carry_is_caught(tmp_path: Path, codec: str) -> None:
    bundle = lossy.build_with(tmp_path, codec)
    for plan in lossy.PLACES:
        line = Line(bundle, plan)
        x = lossy.inputs_of(1)["x"]
        assert line.first_reason(x) is None
        assert line.first_reason(np.zeros_like(x)) is None
        for value in (np.nan, np.inf, -np.inf):
            for place in ((0, 0, 0), (1, 4, lossy.WIDTH - 1), (1, 2, 7)):
                bad = x.copy()
                bad[place] = value
                found = line.first_reason(bad)
                assert found is not None
                assert found[0] == 0, "the first tier encodes something that comes of x under each of these plans"
                assert f"cannot travel as {codec}" in found[1]
        line.close()


def test_an_overflow_inside_the_network(tmp_path: Path) -> None:
    """x fits into half precision, v = x · wv does not: silently infinite, until somebody looks."""
    bundle = lossy.build_with(tmp_path, "fp16")
    line = Line(bundle, "up")
    found = line.first_reason(np.full((1, 5, lossy.WIDTH), 40_000, np.float32))
    assert found is not None
    at, reason = found
    assert at == 0
    assert reason.startswith("value 'v' cannot travel as fp16: ")
    assert reason.endswith("of its 80 numbers are NaN, infinite, or 65520 and more in magnitude")
    line.close()
    ranged = Line(lossy.build_with(tmp_path, "u8"), "up")
    assert ranged.first_reason(np.full((1, 5, lossy.WIDTH), 40_000, np.float32)) is None
    ranged.close()


def test_counts_are_outputs_of_the_segments_that_encode_and_never_travel(tmp_path: Path) -> None:
    bundle = lossy.build_with(tmp_path, "u4_per_channel")
    for steps in bundle.plans.steps.values():
        for step in steps:
            assert _values(step.outputs, "check") == _values(step.outputs, "payload")
            assert not _values(step.inputs, "check")


def _values(names: tuple[str, ...], role: str) -> list[str]:
    made = map(read_encoded_name, names)
    return sorted(each.value for each in made if each is not None and each.role == role)
