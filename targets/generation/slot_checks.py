"""What step models refuse alike: contexts and tokens that cannot be, no room, and folders that hold no program."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flagsplit.errors import BundleError, InputError, InternalError
from flagsplit.flagir.programs.program import ProgramFacts
from flagsplit.flagir.programs.store import FACTS_NAME, MAX_FACTS_BYTES
from flagsplit.targets.interface import Array


def read_facts(folder: Path) -> ProgramFacts:
    """The facts of the program in a folder.

    Raises:
        BundleError: there are none.
        ModelError: they are damaged.
    """
    file = folder / FACTS_NAME
    if not file.is_file() or file.stat().st_size > MAX_FACTS_BYTES:
        raise BundleError(f"expected a program in {folder}, which has no {FACTS_NAME} of a sensible size")
    return ProgramFacts.from_json(file.read_bytes())


def check_hidden(facts: ProgramFacts, context: Mapping[str, Array] | None) -> Array | None:
    """The hidden states of a context; None where the program takes none.

    Raises:
        InputError: they are missing, of another form, or not wanted.
    """
    if facts.kind != "encoder-decoder":
        if context:
            raise InputError(f"program {facts.name} takes no context, came {', '.join(context)}")
        return None
    hidden, width = (context or {}).get("hidden"), facts.width
    if hidden is None or hidden.dtype != np.float32 or hidden.ndim != 3 or hidden.shape[::2] != (1, width):
        came = "none" if hidden is None else f"{hidden.dtype} {list(hidden.shape)}"
        raise InputError(f"expected hidden states float32 [1, frames, {width}], came {came}")
    return hidden


def check_tokens(facts: ProgramFacts, length: int, tokens: Array, *, are_rows: bool = False) -> None:
    """Raise unless tokens, or rows, can be appended to a stream of some length.

    Raises:
        InputError: they are of another form, not of the vocabulary, or too many.
    """
    width, most = facts.width, facts.max_positions
    if are_rows:
        fits = tokens.dtype == np.float32 and tokens.ndim == 2 and tokens.shape[1] == width and len(tokens) > 0
    else:
        fits = tokens.dtype == np.int64 and tokens.ndim == 1 and len(tokens) > 0
        fits = fits and int(tokens.min()) >= 0 and int(tokens.max()) < facts.vocabulary
    if not fits:
        wanted = f"rows float32 [n, {width}]" if are_rows else f"tokens below {facts.vocabulary}"
        raise InputError(f"expected {wanted}, came {tokens.dtype} {list(tokens.shape)}")
    if length + len(tokens) > most:
        raise InputError(f"a stream has at most {most} tokens, came {len(tokens)} more than {length}")


def has_room(there_was: bool) -> None:
    """Raise unless there was room for a change of the caches.

    Raises:
        InternalError: there was none.
    """
    if not there_was:
        raise InternalError("caches would take more than their limit; ask a sketch of the room before")
