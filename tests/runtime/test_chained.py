"""Chains of atoms: what they take and give, what they let go of, and that atoms are shared."""

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.runtime.fake_segments import wait_for

from flagsplit.errors import BundleError
from flagsplit.runtime.chained import ChainedExecutable, SharedParts
from flagsplit.runtime.engine import Engine
from flagsplit.runtime.events import Ran, Run
from flagsplit.targets.interface import Array, TensorSpec


class Adds:
    """Adds up what it reads, once for each of its outputs."""

    def __init__(self, reads: str, makes: str) -> None:
        self.inputs = tuple(TensorSpec(name, "float32", ("n", 1)) for name in reads)
        self.outputs = tuple(TensorSpec(name, "float32", ("n", 1)) for name in makes)
        self.closed = 0
        self.watched: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.watched))
        total = np.sum([np.asarray(array, np.float32) for array in tensors.values()], axis=0)
        return {spec.name: np.asarray(total + at, np.float32) for at, spec in enumerate(self.outputs)}

    def close(self) -> None:
        self.closed += 1


ONE = {"x": np.ones((2, 1), np.float32)}


def test_a_chain_is_its_parts_in_order() -> None:
    closed: list[int] = []
    chain = ChainedExecutable([Adds("x", "ab"), Adds("ab", "c"), Adds("cx", "d")], "x", "bd", lambda: closed.append(1))
    assert [spec.name for spec in chain.inputs] == ["x"]
    assert [spec.name for spec in chain.outputs] == ["b", "d"]
    made = chain.run(ONE)
    assert {name: array[0, 0] for name, array in made.items()} == {"b": 2.0, "d": 4.0}
    assert list(ONE) == ["x"], "what it is given stays"
    chain.close()
    chain.close()
    assert closed == [1]


def test_a_tensor_is_let_go_after_its_last_reader() -> None:
    class Watching(Adds):
        def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
            made = super().run(tensors)
            last.watched += [weakref.ref(array) for array in made.values()]
            return made

    last = Adds("c", "d")
    chain = ChainedExecutable([Watching("x", "ab"), Watching("a", "c"), last], "x", "d", lambda: None)
    chain.run(ONE)
    assert last.alive == [1], "only c is left of a, b and c"


@pytest.mark.parametrize(("inputs", "outputs", "absent"), [("x", "az", "z"), ("y", "a", "x"), ("", "b", "x")])
def test_what_no_part_makes_is_an_error(inputs: str, outputs: str, absent: str) -> None:
    with pytest.raises(BundleError, match=f"'{absent}'"):
        ChainedExecutable([Adds("x", "a"), Adds("a", "b")], inputs, outputs, lambda: None)


def test_parts_in_a_wrong_order_are_an_error() -> None:
    with pytest.raises(BundleError, match="'a'"):
        ChainedExecutable([Adds("a", "b"), Adds("x", "a")], "x", "b", lambda: None)


def test_shared_parts_are_loaded_once_and_freed_with_the_last_chain() -> None:
    loaded: list[str] = []
    atoms = {name: Adds(name, after) for name, after in zip("xab", "abc", strict=True)}

    def load(part: str) -> Adds:
        loaded.append(part)
        if part not in atoms:
            raise BundleError(f"no part {part}")
        return atoms[part]

    shared = SharedParts(load)
    long, short = shared.chain("xab", "x", "c"), shared.chain("xa", "x", "b")
    assert loaded == ["x", "a", "b"]
    long.close()
    long.close()
    assert [atoms[name].closed for name in "xab"] == [0, 0, 1]
    assert short.run(ONE)["b"][0, 0] == 1
    with pytest.raises(BundleError, match="no part z"):
        shared.chain("xz", "x", "c")
    short.close()
    assert [atoms[name].closed for name in "xab"] == [1, 1, 1]


def test_an_engine_counts_a_shared_atom_once() -> None:
    atoms = {name: Adds(name, after) for name, after in zip("xab", "abc", strict=True)}
    shared = SharedParts(atoms.__getitem__)
    parts = {"long": "xab", "short": "xa", "tail": "b"}
    outputs = {"long": "c", "short": "b", "tail": "c"}
    results: list[Ran] = []
    engine = Engine(
        lambda _, segment: shared.chain(parts[segment], parts[segment][0], outputs[segment]),
        list(parts),
        dict.fromkeys("xab", 10.0),
        30.0,
        results.append,
        parts=parts,
        mode="atoms",
    )
    engine.start(["long"])
    wait_for(lambda: len(engine.residency().loaded) == 3)
    residency = engine.residency()
    assert (residency.mode, residency.estimated_bytes) == ("atoms", 30.0)
    assert [holding.estimated_bytes for holding in residency.loaded if holding.segment == "short"] == [20.0]
    engine.submit(Run(1, "short", ONE))
    wait_for(lambda: results)
    assert results[0].error == ""
    engine.stop()
    assert [atom.closed for atom in atoms.values()] == [1, 1, 1]
