"""How well and how fast the zoo's recordings are transcribed under each plan, and how late words come live.

Figures by plan of the program: `errors_PLAN`, wrong words of all that are said in the recordings (`words`);
`seconds_per_second_PLAN`, time to transcribe a second of sound, the second time; of all-phone, `live_p50_s` and
`live_p95_s`, how long after their estimated ends words come when the sound comes as from a microphone. `identical` is 1
if all plans give the same text. A plan's decoder service runs in this process.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

from flagsplit.apps import zoo
from flagsplit.apps.speech.known import SAID
from flagsplit.apps.speech.opening import RecognizerChoice, open_model, open_recognizer
from flagsplit.apps.speech.recognizer import Recognizer
from flagsplit.apps.speech.transcribe import Transcription
from flagsplit.apps.speech.transcriber import Segment, Transcriber
from flagsplit.apps.speech.vad import RATE_HZ, open_detector
from flagsplit.apps.speech.wav import WavReader
from flagsplit.apps.speech.wer import word_errors
from flagsplit.targets.interface import Executable


def transcribed(recognizer: Recognizer, detector: Executable, path: Path) -> tuple[str, float, float]:
    """The text, the seconds that it took, and those of the sound."""
    began = time.perf_counter()
    with WavReader(path) as reader:
        events = Transcriber(recognizer, detector).events(reader.blocks(RATE_HZ))
        text = " ".join(event.text for event in events if isinstance(event, Segment))
        return text, time.perf_counter() - began, reader.seconds


def measure(model: str, threads: int) -> dict[str, float]:
    """Figures of all plans."""
    paths = {name: zoo.pull(name) for name in SAID}
    detector = open_detector()
    figures: dict[str, float] = {}
    texts = set()
    for plan in open_model(RecognizerChoice(model)).plans:
        recognizer = open_recognizer(RecognizerChoice(model, plan, threads=threads))
        took_s = sound_s = wrong = words = 0.0
        said = []
        for name, path in paths.items():
            transcribed(recognizer, detector, path)
            text, seconds, length = transcribed(recognizer, detector, path)
            errors = word_errors(SAID[name], text)
            took_s, sound_s, words = took_s + seconds, sound_s + length, words + errors.words
            wrong += errors.substitutions + errors.insertions + errors.deletions
            said.append(text)
        recognizer.close()
        texts.add(tuple(said))
        figures |= {f"errors_{plan}": wrong, "words": words, f"seconds_per_second_{plan}": took_s / sound_s}
    return figures | {"identical": float(len(texts) == 1)}


def live(model: str, threads: int, path: Path) -> dict[str, float]:
    """How late words come."""
    transcription = Transcription(path, RecognizerChoice(model, threads=threads), pace=True)
    for _ in transcription.events():
        pass
    return {f"live_{name}_s": value for name, value in transcription.result.latency_s().items()}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="live only the shorter recording")
    parser.add_argument("--model", default="zoo:moonshine", help="a program, or a bundle of one")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    arguments = parser.parse_args()
    figures = measure(arguments.model, arguments.threads)
    figures |= live(
        arguments.model, arguments.threads, zoo.pull("beckett.wav" if arguments.quick else "two-cities.wav")
    )
    if arguments.json:
        conditions = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": arguments.threads}
        print(json.dumps({"figures": figures, "conditions": conditions, "basis": "measured"}))
    else:
        for key, value in figures.items():
            print(f"{key:32} {value:.4g}")


if __name__ == "__main__":
    main()
