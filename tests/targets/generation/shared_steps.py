"""Streams of a step model as the scheduler steps them."""

from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.runtime.generation.events import Generate
from flagsplit.runtime.generation.scheduler import Scheduler
from flagsplit.runtime.generation.step import make_change
from flagsplit.targets.generation.step_model import StepModel


def outputs_in_shared_steps(model: StepModel, asked: list[Generate], settings: SchedulerSettings) -> list[list[int]]:
    """The tokens of streams that are asked for at once, under the budget of the settings."""
    scheduler = Scheduler(model, settings)
    model.limit(settings.kv_bytes)
    found: list[list[int]] = [[] for _ in asked]
    for each in asked:
        assert scheduler.submit(each, 0.0) == []
    while (step := scheduler.plan(0.0)) is not None:
        for change in step.changes:
            make_change(change, model)
        if step.works:
            for event in scheduler.finish(step, model.step(step.slots, step.tokens), 0.0, 0.0):
                found[int(event.stream_id)] += event.tokens  # type: ignore[union-attr]
    return found
