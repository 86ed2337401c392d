"""The demo as one story: fetch, build, connect, read a page, lose the cloud, read on."""

import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from flagsplit.apps import building, compare, connecting
from flagsplit.apps.assembly import BuildResult
from flagsplit.apps.cli.output import console, size_text, table
from flagsplit.apps.demo.scenario import DEVICES, LINKS, NOMINAL_WIDTH, PHONES, SLA_FILE, TIERS
from flagsplit.apps.local import LocalWorkers
from flagsplit.apps.ocr import (
    Reading,
    characters_of,
    cut_line,
    decode,
    find_lines,
    first_page,
    prepare,
    read_page,
    second_page,
)
from flagsplit.apps.prediction import HostPrediction
from flagsplit.apps.zoo import pull
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.session import Answer, Session
from flagsplit.splitter.explain import plan_without_limits
from flagsplit.targets.interface import Array, Executable, LoadOptions

Gray = NDArray[np.uint8]

_LEGIBLE = 0.6
_KILL_AT_LINE = 3


@dataclass
class _Figures:
    """What was measured and predicted over all lines of a page."""

    answers: list[Answer] = field(default_factory=list)
    predicted_ms: float = 0.0
    predicted_tier_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    max_abs: float = 0.0
    max_rel: float = 0.0
    texts: list[str] = field(default_factory=list)
    unsplit: list[Reading] = field(default_factory=list)

    @property
    def latency_ms(self) -> float:
        return sum(answer.report.latency_ms for answer in self.answers)


def tell(targets: Mapping[str, str] | None = None, choices: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Run the demo; it ends with an error if a line is lost or wrong.

    Args:
        targets: what a tier runs, such as `{"phone": "coreml"}`; ONNX Runtime by default. Chips take lines of one
            width.
        choices: what these targets let choose, such as `{"litert": {"precision": "int8"}}`.
    """
    chosen = dict(targets or {})
    out = console()
    started = time.monotonic()
    _step(out, "Fetching the PP-OCRv4 recognizer and a scanned page out of their packages")
    model = pull("ppocr-rec", progress=lambda what: _say(out, what))
    pages = first_page(), second_page()
    with tempfile.TemporaryDirectory(prefix="flagsplit-demo-") as folder:
        _step(out, "Building a bundle for phone, edge and cloud")
        samples = _samples(Path(folder), pages[1]) if chosen else []
        built = _build(model, Path(folder) / "page.flagsplit", chosen, choices or {}, samples)
        _show_plan(out, built)
        bundle = connecting.open(built.path, cache=Path(folder) / "cache")
        _step(out, "Starting an edge worker and a cloud worker, processes of their own on loopback, CURVE on")
        on_phone = {tier: name for tier, name in chosen.items() if tier == TIERS[0]}
        elsewhere = {tier: name for tier, name in chosen.items() if tier != TIERS[0]}
        with (
            LocalWorkers(bundle.path, TIERS[1:], run_targets=elsewhere) as workers,
            connecting.connect(bundle, workers.addresses, run_targets=on_phone) as session,
        ):
            for tier, worker in workers.workers.items():
                _say(out, f"{tier}: process {worker.process.pid} at {worker.address.address}")
            _read(out, bundle, session, _Reader(characters_of(model), chosen), pages, workers)
    _say(out, f"\nDone in {time.monotonic() - started:.1f} s; all processes ended.")


@dataclass(frozen=True)
class _Reader:
    """How lines are prepared and their answers read."""

    characters: tuple[str, ...]
    targets: Mapping[str, str]

    @property
    def width_px(self) -> int | None:
        """Of every line, where some tier takes one shape only."""
        return NOMINAL_WIDTH if self.targets else None


def _samples(folder: Path, page: Gray) -> list[Path]:
    """The lines and words of a page as inputs in files, for what is calibrated."""
    found: list[Path] = []
    for line in (cut_line(page, box) for box in find_lines(page)):
        for part in (line, *np.array_split(line, 3, axis=1)):
            found.append(folder / f"sample{len(found)}.npz")
            np.savez(found[-1], x=prepare([part], width_px=NOMINAL_WIDTH))
    return found


def _build(
    model: Path,
    output: Path,
    chosen: Mapping[str, str],
    choices: Mapping[str, Mapping[str, str]],
    samples: Sequence[Path],
) -> BuildResult:
    phone = PHONES.get(chosen.get(TIERS[0], ""), DEVICES[TIERS[0]])
    return building.build(
        model,
        TIERS,
        output,
        devices=DEVICES | {TIERS[0]: phone},
        links=LINKS,
        sla=SLA_FILE,
        shapes={"x": (1, 3, 48, NOMINAL_WIDTH)},
        targets={tier: [name] for tier, name in chosen.items()},
        choices=choices,
        samples=samples,
    )


def _show_plan(out: Console, built: BuildResult) -> None:
    problem = built.planning.problem
    for tier, link in zip(problem.tiers, (None, *problem.links), strict=True):
        _say(out, f"{tier.name} is a {tier.device.title}{'' if link is None else f', reached by {link.name}'}")
    _say(out, "SLA: raw pixels stay on the phone; at most 4 MB of the phone's memory")
    for sentence in built.planning.reasons:
        _say(out, sentence)
    free = plan_without_limits(problem)
    split = "no split" if len(free.used_tiers) == 1 else "a split"
    _say(
        out,
        f"Without the SLA's limits the choice would be {free.name} ({split}), "
        f"{free.predicted.latency_s * 1e3:.1f} ms predicted. (All of this is modelled for those devices.)",
    )


def _read(
    out: Console,
    bundle: Bundle,
    session: Session,
    reader: _Reader,
    pages: tuple[Gray, Gray],
    workers: LocalWorkers,
) -> None:
    whole = bundle.load_whole(LoadOptions(threads=1))
    prediction = HostPrediction(bundle)
    _warm_up(session, pages[0], reader)
    _step(out, "Reading the first page")
    first = _read_page(out, session, pages[0], reader, whole, prediction)
    _show_figures(out, bundle, first)
    _step(out, f"Reading a second page; the cloud worker is killed (SIGKILL) at line {_KILL_AT_LINE}")
    victim = workers.workers["cloud"].process.pid
    second = _read_page(out, session, pages[1], reader, whole, prediction, victim)
    whole.close()
    plans = [answer.report.plan for answer in second.answers]
    counts = ", ".join(f"{plans.count(name)} by {name}" for name in dict.fromkeys(plans))
    struck = second.answers[_KILL_AT_LINE - 1].report
    _say(out, f"{len(plans)} of {len(plans)} lines read: {counts}; none lost, none twice")
    story = f"answered by {struck.plan} after {struck.latency_ms:.0f} ms, in attempt {struck.attempts}"
    _say(out, f"line {_KILL_AT_LINE}, under way when the cloud died, was {story}")
    _say(out, f"largest difference from the unsplit model on this page: {second.max_abs:.3g}")
    unlike = [
        (came, unsplit.text)
        for figures in (first, second)
        for came, unsplit in zip(figures.texts, figures.unsplit, strict=True)
        if came != unsplit.text and unsplit.confidence >= _LEGIBLE
    ]
    if reader.targets:
        ran = ", ".join(f"the {tier} ran {name}" for tier, name in reader.targets.items())
        _say(out, f"{ran}: {len(unlike)} legible lines differ from the unsplit model's")
    for came, expected in unlike:
        _say(out, f"expected {expected!r}, came {came!r}")
    exact = bool(reader.targets) or max(first.max_rel, second.max_rel) <= 1e-4
    if unlike or not exact or session.tiers["cloud"] == "up":
        sys.exit("flagsplit demo: the split run differs from the unsplit model, or the cloud did not die")


def _warm_up(session: Session, page: Gray, reader: _Reader) -> None:
    """One line through all tiers, so that what is timed is a running system."""
    lines = read_page(page, lambda inputs: session.run(inputs), reader.characters, width_px=reader.width_px)
    next(iter(lines))


def _read_page(
    out: Console,
    session: Session,
    page: Gray,
    reader: _Reader,
    whole: Executable,
    prediction: HostPrediction,
    kill_pid: int | None = None,
) -> _Figures:
    figures = _Figures()

    def ask(inputs: Mapping[str, Array]) -> Answer:
        future = session.submit(inputs)
        if kill_pid is not None and len(figures.answers) == _KILL_AT_LINE - 1:
            time.sleep(0.01)
            os.kill(kill_pid, signal.SIGKILL)
        answer = future.result()
        figures.answers.append(answer)
        expected = whole.run(inputs)
        _compare(figures, expected, answer)
        (unsplit,) = decode(np.asarray(next(iter(expected.values())), np.float32), reader.characters)
        figures.unsplit.append(unsplit)
        predicted = prediction.predict(answer.report.plan, inputs)
        figures.predicted_ms += predicted.latency_ms
        for tier, run_ms in predicted.run_ms.items():
            figures.predicted_tier_ms[tier] += run_ms
        return answer

    for _, reading in read_page(page, ask, reader.characters, width_px=reader.width_px):
        figures.texts.append(reading.text)
        if reading.confidence >= _LEGIBLE:
            out.print(f"  │ {reading.text}", markup=False, highlight=False)
        else:
            out.print(f"  │ [dim]({reading.confidence:.2f}: a line that the page's edge cuts off)[/dim]")
    return figures


def _compare(figures: _Figures, expected: Mapping[str, Array], answer: Answer) -> None:
    for difference in compare.compare(expected, answer).values():
        figures.max_abs = max(figures.max_abs, difference.max_abs)
        figures.max_rel = max(figures.max_rel, difference.max_rel)


def _show_figures(out: Console, bundle: Bundle, figures: _Figures) -> None:
    lines = len(figures.answers)
    measured: dict[str, float] = defaultdict(float)
    links: dict[str, int] = defaultdict(int)
    for answer in figures.answers:
        for tier in answer.report.tiers:
            measured[tier.tier] += tier.run_ms
        for link in answer.report.links:
            links[f"{link.source} → {link.target}"] += link.bytes
    blocks = bundle.plan(figures.answers[0].report.plan).placement
    rows = [
        (tier, blocks.count(index), f"{measured[tier] / lines:.2f}", f"{figures.predicted_tier_ms[tier] / lines:.2f}")
        for index, tier in enumerate(bundle.tiers)
    ]
    out.print()
    basis = figures.answers[0].report.basis
    columns = ("tier", "blocks", f"{basis} here, ms", "modelled here, ms")
    out.print(table(f"Per line, mean of {lines}", columns, rows))
    out.print()
    out.print(table("", ("link", "bytes"), [(name, size_text(total / lines)) for name, total in links.items()]))
    out.print()
    mean_ms, predicted_ms = figures.latency_ms / lines, figures.predicted_ms / lines
    on_devices_ms = bundle.plans.pool.plans[0].predicted.latency_s * 1e3
    _say(out, f"latency  {mean_ms:7.1f} ms  {basis}: three processes on this host")
    _say(out, f"         {predicted_ms:7.1f} ms  predicted for this host (modelled from its measured profile)")
    _say(out, f"         {on_devices_ms:7.1f} ms  predicted for the devices named above (modelled)")
    _say(out, f"largest difference from the unsplit model: {figures.max_abs:.3g}")


def _step(out: Console, text: str) -> None:
    out.print(f"\n[bold]{text}[/bold]")


def _say(out: Console, text: str) -> None:
    out.print(f"  {text}", markup=False, highlight=False)
