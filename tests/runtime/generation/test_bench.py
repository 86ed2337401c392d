"""The program that measures the decoder runs and says its figures; what they are is not tested here, but for one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flagsplit.apps import zoo
from flagsplit.errors import PeerError

BENCH = Path(__file__).parents[3] / "bench"
FIGURES = {"tokens_per_s", "speedup", "ttft_ms_p50", "ttft_ms_p95", "token_ms_p50", "token_ms_p95"}
SIZES = {"uplink_f32", "uplink_fp16", "uplink_u8", "uplink_u8_per_channel", "uplink_pcm", "uplink_opus"}


@pytest.mark.slow
def test_the_quick_form_has_all_figures() -> None:
    try:
        zoo.pull("moonshine-decoder")
    except PeerError as error:
        pytest.skip(f"offline: {error}")
    program = [sys.executable, str(BENCH / "decoder.py"), "--json", "--quick", "--streams", "2"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["basis"] == "measured"
    figures = found["figures"]
    assert {f"{name}_2" for name in FIGURES} | SIZES | {"identical", "wer_f32", "wer_u8"} <= set(figures)
    assert figures["identical"] == 1
    assert figures["wer_u8"] == figures["wer_f32"]
