"""What a picture costs as JPEG and WebP of quality 90: bits per pixel, and how fast one thread encodes and decodes.

    python bench/input_codecs.py china.jpg flower.jpg     pictures in color; those of the zoo, in gray, are always there

The figures of `splitter/data/input_codecs.json` come from here. A picture counts at its own size and at 224 x 224,
which is what a network wants; the median over both and over all pictures is what goes into the table.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from flagsplit.apps import zoo

QUALITY = 90
REPEATS = 15
GRAY = ("page.png", "text.png")


def best_of(work: Callable[[], object]) -> float:
    """The least of several times, in seconds."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def measure(picture: Image.Image, codec: str) -> dict[str, float]:
    """One picture by one codec; raw bytes are those of 8 bits per channel."""
    raw = len(picture.tobytes())

    def encode() -> bytes:
        out = io.BytesIO()
        picture.save(out, codec, quality=QUALITY)
        return out.getvalue()

    coded = encode()
    return {
        "bits_per_pixel": 8 * len(coded) / (picture.width * picture.height),
        "encode_mb_per_s": raw / best_of(encode) / 1e6,
        "decode_mb_per_s": raw / best_of(lambda: Image.open(io.BytesIO(coded)).convert(picture.mode).tobytes()) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pictures = [("rgb", Image.open(path).convert("RGB")) for path in options.pictures]
    pictures += [("gray", Image.open(zoo.pull(name)).convert("L")) for name in GRAY]
    found: dict[str, dict[str, object]] = {}
    for codec in ("JPEG", "WEBP"):
        for channels in ("rgb", "gray"):
            seen = [p for kind, p in pictures if kind == channels]
            rows = [measure(size, codec) for p in seen for size in (p, p.resize((224, 224)))]
            if rows:
                found[f"{codec.lower()}_{channels}"] = {
                    key: {"median": statistics.median(r[key] for r in rows), "all": [r[key] for r in rows]}
                    for key in rows[0]
                }
    if options.json:
        print(json.dumps({"quality": QUALITY, "basis": "measured", "codecs": found}))
        return
    for name, figures in found.items():
        print(name, *(f"{key} {figure['median']:.3g}" for key, figure in figures.items()))  # type: ignore[index]


if __name__ == "__main__":
    main()
