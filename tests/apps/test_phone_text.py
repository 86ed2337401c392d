"""A printed line read by a phone that runs the artifact of a chip: the text is that of the unsplit model."""

import json
from pathlib import Path

import numpy as np
import pytest

import flagsplit
from flagsplit.apps.cli.main import main
from flagsplit.apps.ocr import characters_of, cut_line, decode, find_lines, first_page, prepare
from flagsplit.apps.ocr.recogniser import INPUT_HEIGHT_PX
from flagsplit.apps.zoo import pull
from flagsplit.targets.catalogue import missing_sdk
from flagsplit.targets.interface import LoadOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folders")]

_WIDTH_PX = 320
_LINE = 1


def test_the_text_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [name for name in ("coreml", "litert") if not missing_sdk(name)]
    model, page = pull("ppocr-rec"), first_page()
    line = cut_line(page, find_lines(page)[_LINE])
    x = prepare([line[:, : _WIDTH_PX * line.shape[0] // INPUT_HEIGHT_PX]], width_px=_WIDTH_PX)
    np.savez(tmp_path / "line.npz", x=x)
    flagsplit.build(
        model,
        "phone,cloud",
        tmp_path / "line.flagsplit",
        shapes={"x": x.shape},
        targets={"phone": targets},
        samples=[tmp_path / "line.npz"],
    )
    bundle = flagsplit.open(tmp_path / "line.flagsplit", cache=tmp_path)
    whole = bundle.load_whole(LoadOptions(threads=1))
    (name,) = (tensor.name for tensor in bundle.outputs)
    (expected,) = decode(np.asarray(whole.run({"x": x})[name], np.float32), characters_of(model))
    whole.close()
    assert len(expected.text) > 10
    assert expected.confidence > 0.9
    words = ["--input", str(tmp_path / "line.npz"), "--plan", "all-phone", "-o", str(tmp_path / "answer.npz"), "--json"]
    for target in targets:
        command = ["flagsplit", "run", str(tmp_path / "line.flagsplit"), "--phone-target", target, *words]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said = json.loads(capsys.readouterr().out)
        assert said["targets"] == {"phone": target}
        assert said["basis"] == ("measured" if target == "litert" else "emulated")
        with np.load(tmp_path / "answer.npz") as answer:
            (came,) = decode(answer[name], characters_of(model))
        assert came.text == expected.text
