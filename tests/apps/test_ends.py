"""What enters and leaves a bundle: numbers go to any tier, strings stay on the first, all else is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.apps import models

import flagsplit
from flagsplit.errors import InputError, ModelError, PolicyError

pytestmark = pytest.mark.usefixtures("own_folders")

WORDS = """<ir_version: 9, opset_import: ["" : 20, "ai.onnx.ml" : 4]>
words (string[N] word) => (float[N, 4] y, string[N] twice) {
    at = ai.onnx.ml.LabelEncoder <keys_strings = ["one", "two"], values_int64s = [1, 2], default_int64 = 0> (word)
    row = Gather (table, at)
    y = MatMul (row, w)
    twice = StringConcat (word, word)
}"""


def save(text: str, folder: Path, **weights: tuple[int, ...]) -> Path:
    model = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return models.save(model, folder / "model.onnx")


@pytest.mark.slow
def test_strings_enter_and_leave_on_the_first_tier(tmp_path: Path) -> None:
    model = save(WORDS, tmp_path, table=(3, 8), w=(8, 4))
    result = flagsplit.build(model, "phone,cloud", tmp_path / "m.flagsplit", sla={"pins": {"MatMul": "phone"}})
    assert [plan.name for plan in result.planning.pool.plans] == ["all-phone"]
    words = np.array(["two", "drei", "one"])
    expected = models.answers_of(model, {"word": words.astype(object)})
    with flagsplit.connect(result.path, {}) as session:
        for given in (words, words.astype(object)):
            answer = session.run({"word": given})
            models.assert_near(answer["y"], expected["y"])
            assert answer["twice"].tolist() == ["twotwo", "dreidrei", "oneone"]
        for wrong in (np.zeros(3), np.array([b"two"] * 3), np.array(["two", 1, "one"], object)):
            with pytest.raises(InputError, match="'word': expected strings"):
                session.run({"word": wrong})


def test_strings_go_no_further(tmp_path: Path) -> None:
    model = save(WORDS, tmp_path, table=(3, 8), w=(8, 4))
    with pytest.raises(PolicyError, match="'word' is of strings, which do not leave phone"):
        flagsplit.plan(model, "phone,cloud", sla={"pins": {"LabelEncoder": "cloud"}})


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (
            "(float[4, 2] x) => (seq(float[2]) y) { y = SplitToSequence <axis = 0, keepdims = 0> (x) }",
            "'y'.*sequence",
        ),
        (
            "(seq(float[2]) x) => (float[2, 2] y) { y = ConcatFromSequence <axis = 0, new_axis = 1> (x) }",
            "'x'.*sequence",
        ),
        ("(float[2] x) => (optional(float[2]) y) { y = Optional (x) }", "'y'.*an optional"),
        ("(bfloat16[2] x) => (float[2] y) { y = Cast <to = 1> (x) }", "'x'.*bfloat16.*cast inside"),
        ("(float[2] x) => (float8e4m3fn[2] y) { y = Cast <to = 17> (x) }", "'y'.*float8e4m3fn"),
    ],
)
def test_what_is_no_array_is_refused(signature: str, said: str, tmp_path: Path) -> None:
    model = save(f'<ir_version: 9, opset_import: ["" : 19]> g {signature}', tmp_path)
    with pytest.raises(ModelError, match=said):
        flagsplit.plan(model, "phone,cloud")


def test_an_optional_input_is_given(tmp_path: Path) -> None:
    body = "(optional(float[2, 2]) x) => (float[2, 2] y) { a = OptionalGetElement (x) y = MatMul (a, w) }"
    model = save(f'<ir_version: 9, opset_import: ["" : 18]> g {body}', tmp_path, w=(2, 2))
    assert flagsplit.plan(model, "phone,cloud").plan.name == "all-phone"
