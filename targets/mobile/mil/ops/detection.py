"""Suppression of overlapping boxes."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from flagsplit.targets.mobile.mil.arguments import IOS17, Arguments, Operator
from flagsplit.targets.mobile.mil.types import Array


def non_maximum_suppression(a: Arguments) -> tuple[Array, ...]:
    """The boxes of highest score that overlap no better one by more than a threshold.

    Boxes are (x, y, width, height) about their center. Up to iOS 16 they come as rows, boxes of a low score are left
    out, and how many are left is a fourth result; since iOS 17 they come as columns. Unused places of the results hold
    0, of the indices -1.
    """
    boxes, scores = a.tensor("boxes"), a.tensor("scores")
    modern = a.opset >= IOS17
    if modern:
        boxes, scores = np.swapaxes(boxes, 1, 2), np.swapaxes(scores, 1, 2)
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2]:
        raise a.refuse(f"scores of shape {list(scores.shape)} do not fit boxes of shape {list(boxes.shape)}")
    count = a.integer("max_boxes")
    batch, classes = boxes.shape[0], scores.shape[2]
    # Indices come third in both versions, with a place for each box.
    a.room((batch, count), 2)
    kept_boxes = np.zeros((batch, count, 4), boxes.dtype)
    kept_scores = np.zeros((batch, count, classes), scores.dtype)
    kept = np.full((batch, count), -1, np.int32)
    counts = np.zeros(batch, np.int32)
    for item in range(batch):
        chosen = _chosen(a, boxes[item], scores[item], modern=modern)[:count]
        kept_boxes[item, : len(chosen)] = boxes[item, chosen]
        kept_scores[item, : len(chosen)] = scores[item, chosen]
        kept[item, : len(chosen)] = chosen
        counts[item] = len(chosen)
    if modern:
        return np.swapaxes(kept_boxes, 1, 2), np.swapaxes(kept_scores, 1, 2), kept
    return kept_boxes, kept_scores, kept, counts


def _chosen(a: Arguments, boxes: Array, scores: Array, *, modern: bool) -> list[int]:
    best, label = scores.max(axis=1), scores.argmax(axis=1)
    threshold = a.number("iou_threshold")
    per_class = a.flag("per_class_suppression", False)
    order = [int(at) for at in np.argsort(-best, kind="stable")]
    if not modern:
        least = a.number("score_threshold")
        order = [at for at in order if best[at] >= least]
    chosen: list[int] = []
    for at in order:
        rivals = [other for other in chosen if not per_class or label[other] == label[at]]
        if not rivals or float(_overlaps(boxes[at], boxes[rivals]).max()) <= threshold:
            chosen.append(at)
    return chosen


def _overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of a box with each of others."""
    low = np.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    common = np.prod(np.maximum(high - low, 0), axis=1)
    whole = box[2] * box[3] + others[:, 2] * others[:, 3] - common
    return np.where(whole > 0, common / np.where(whole > 0, whole, 1), 0)


OPERATORS: Final[Mapping[str, Operator]] = {"non_maximum_suppression": non_maximum_suppression}
