"""All passes from a chip part to the program that is written."""

from flagsplit.targets.chip_parts import ChipPart
from flagsplit.targets.tflite.fuse import fuse
from flagsplit.targets.tflite.int8 import to_int8, without_idle_pairs
from flagsplit.targets.tflite.layout import STEP, settle_layouts
from flagsplit.targets.tflite.lower import lower_part
from flagsplit.targets.tflite.program import Program


def program_of(part: ChipPart, step: int = STEP) -> Program:
    """The program of a chip part, channels last where that is cheaper, in int8 where the part says so.

    Args:
        part: to be lowered.
        step: what a transpose costs beside its elements.

    Raises:
        ModelError: a node cannot be lowered; the message names it and says why.
    """
    return to_int8(fuse(settle_layouts(without_idle_pairs(lower_part(part)), step)))
