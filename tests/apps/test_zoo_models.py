"""Real models through the whole way: every plan of the pool gives the answer of the unsplit model."""

from pathlib import Path

import pytest
from tests.apps.conftest import Serve

import flagsplit
from flagsplit.apps import zoo
from flagsplit.apps.compare import compare
from flagsplit.errors import PeerError
from flagsplit.runtime.inputs import random_inputs
from flagsplit.targets.interface import LoadOptions

DIMS = {
    "ppocr-rec": {"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 160},
    "ppocr-cls": {},
    "light-squeezenet": {},
    "light-shufflenet": {},
}


@pytest.fixture(scope="session", params=DIMS)
def real_model(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Pulled into the user's own cache, so that not every run fetches it again."""
    try:
        return request.param, zoo.pull(request.param)
    except PeerError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("own_folders")
def test_every_plan(serve: Serve, real_model: tuple[str, Path], tmp_path: Path) -> None:
    name, model = real_model
    sla = {"keep_on": {"inputs": "phone"}} if name == "ppocr-rec" else {}
    links = {"edge": "1gbit/0.2ms", "cloud": "1gbit/0.2ms"}
    output = tmp_path / "x.flagsplit"
    built = flagsplit.build(model, "phone,edge,cloud", output, dims=DIMS[name], sla=sla, links=links)
    assert built.size_bytes <= 1.15 * built.weights_bytes + 1e6
    bundle = flagsplit.open(output, cache=tmp_path)
    inputs = random_inputs(bundle.inputs, bundle.facts.nominal_dims)
    whole = bundle.load_whole(LoadOptions(threads=1))
    expected = whole.run(inputs)
    whole.close()
    with flagsplit.connect(bundle, serve(bundle)) as session:
        for plan in bundle.plans.pool.plans:
            answer = session.run(inputs, plan=plan.name)
            assert answer.report.plan == plan.name
            for output_name, difference in compare(expected, answer).items():
                assert difference.max_rel <= 1e-4, (plan.name, output_name)
