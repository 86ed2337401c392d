"""Segments that are run as chains of atoms, and the atoms that several of them share.

Each atom is loaded once however many chains have it, and freed when the last of them is closed. What an atom computes
is fixed when the bundle is built (`flagsplit.flagir.atoms`).
"""

from collections.abc import Callable, Mapping, Sequence

from flagsplit.errors import BundleError
from flagsplit.targets.interface import Array, Executable, TensorSpec


class ChainedExecutable:
    """Executables run one after the other as if they were one.

    Args:
        parts: in order; each reads inputs of the chain and what those before it made.
        inputs: names of what the chain is given.
        outputs: names of what the chain gives.
        closed: called once when it is closed; the parts are not this object's to close.

    Raises:
        BundleError: a part reads what nobody makes, or an output is made by no part.
    """

    def __init__(
        self, parts: Sequence[Executable], inputs: Sequence[str], outputs: Sequence[str], closed: Callable[[], None]
    ) -> None:
        self._parts = tuple(parts)
        self._closed: Callable[[], None] | None = closed
        made: dict[str, TensorSpec] = {}
        read: dict[str, TensorSpec] = {}
        last: dict[str, int] = {}
        for at, part in enumerate(self._parts):
            read |= {spec.name: spec for spec in part.inputs if spec.name not in made and spec.name not in read}
            made |= {spec.name: spec for spec in part.outputs}
            last |= dict.fromkeys((spec.name for spec in (*part.inputs, *part.outputs)), at)
        absent = [*(name for name in read if name not in inputs), *(name for name in outputs if name not in made)]
        if absent:
            raise BundleError(f"no atom of the segment makes {absent[0]!r}, which is needed; build the bundle again")
        self._inputs = tuple(read.values())
        self._outputs = tuple(made[name] for name in outputs)
        self._dead = [
            [name for name, end in last.items() if end == at and name not in outputs] for at in range(len(self._parts))
        ]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the chain takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the chain gives."""
        return self._outputs

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the parts in order; a tensor is let go after the last part that reads it.

        Raises:
            InputError: an engine refused the tensors.
        """
        values = dict(tensors)
        for part, dead in zip(self._parts, self._dead, strict=True):
            values |= part.run({spec.name: values[spec.name] for spec in part.inputs})
            for name in dead:
                del values[name]
        return {spec.name: values[spec.name] for spec in self._outputs}

    def close(self) -> None:
        """Let go of the parts; a second call does nothing."""
        closed, self._closed, self._parts = self._closed, None, ()
        if closed is not None:
            closed()


class SharedParts:
    """Parts by id, each loaded while some chain has it. One thread at a time may use it.

    Args:
        load: loads a part; raises a FlagsplitError if it cannot.
    """

    def __init__(self, load: Callable[[str], Executable]) -> None:
        self._load = load
        self._loaded: dict[str, Executable] = {}
        self._users: dict[str, int] = {}

    def chain(self, parts: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]) -> ChainedExecutable:
        """A chain of these parts; closing it lets go of them.

        Raises:
            FlagsplitError: a part cannot be loaded; nothing is held then that was not before.
        """
        taken: list[str] = []
        try:
            for part in parts:
                if part not in self._loaded:
                    self._loaded[part] = self._load(part)
                self._users[part] = self._users.get(part, 0) + 1
                taken.append(part)
            loaded = [self._loaded[part] for part in parts]
            return ChainedExecutable(loaded, inputs, outputs, lambda: self._let_go(taken))
        except BaseException:
            self._let_go(taken)
            raise

    def _let_go(self, parts: Sequence[str]) -> None:
        for part in parts:
            self._users[part] -= 1
            if not self._users[part]:
                del self._users[part]
                self._loaded.pop(part).close()
