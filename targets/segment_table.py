"""`segments.json`: what an app calls, in which order and under which names, to run a segment of a chip's artifact.

The format is in `docs/bundle.md`. It says nothing that flagsplit alone could read: a mobile app goes by it as well.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flagsplit.errors import BundleError
from flagsplit.targets.interface import TensorSpec

TABLE_NAME = "segments.json"

_MOST_BYTES = 64 << 20
_Name = Annotated[str, Field(max_length=4096)]
_Size = Annotated[int, Field(ge=0, le=1 << 44)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TableTensor(_Frozen):
    """A tensor: the value's name in the graph, NumPy element type, sizes; a symbol where one is open."""

    name: _Name
    dtype: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[_Size | Annotated[str, Field(max_length=256)]], Field(max_length=64)]

    def to_spec(self) -> TensorSpec:
        """The same, in the words of the target interface."""
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class OpenDim(_Frozen):
    """The sizes that a symbol may have.

    Attributes:
        nominal: what plans were made for, and a program is called with by default.
        low, high: the least and the greatest.
        sizes: the only ones, where not all between them are.
    """

    nominal: _Size
    low: _Size
    high: _Size
    sizes: Annotated[list[_Size], Field(max_length=1024)] | None = None


class ChipTensor(TableTensor):
    """A tensor at the edge of a chip's program.

    Attributes:
        called: its name in the program.
        passed_as: NumPy element type that the program takes or gives for it, where it is another than `dtype`.
        passed_shape: the shape there, where it is another.
    """

    called: _Name
    passed_as: Annotated[str, Field(max_length=64)] = ""
    passed_shape: Annotated[list[_Size], Field(max_length=64)] | None = None


class ChipCall(_Frozen):
    """How a chip's part of a segment is called.

    Attributes:
        file: the file or folder that holds it, relative to the artifact's folder.
        function: name of the function or signature in it.
        inputs, outputs: in the order of the program.
    """

    file: _Name
    function: _Name
    inputs: Annotated[list[ChipTensor], Field(max_length=100_000)]
    outputs: Annotated[list[ChipTensor], Field(max_length=100_000)]


class StateTensor(_Frozen):
    """A tensor that a program holds from run to run, zeros at first.

    Attributes:
        name: of the value of the graph that the program reads there.
        becomes: of the value that it leaves there.
        called: its name in the program.
        dtype: NumPy element type that it is held in.
        shape: its sizes.
    """

    name: _Name
    becomes: _Name
    called: _Name
    dtype: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[_Size], Field(max_length=64)]


class StatefulCall(ChipCall):
    """A twin of a chip's program that holds some of its inputs as states: an app may run it, flagsplit's runtime never.

    Attributes:
        states: what it holds; they are neither inputs nor outputs.
    """

    states: Annotated[list[StateTensor], Field(max_length=100_000)]


class SegmentCalls(_Frozen):
    """What runs a segment: `before`, `chip`, `after`, each on inputs of the segment and what was made before.

    Attributes:
        inputs, outputs: of the segment.
        before, after: ONNX files that the host runs.
        chip: what the chip runs; missing if the host does all.
        pieces: in place of these three, the ids of the entries that are run in turn for it.
        sized: where each size has a program of its own, all of them, `chip` among them: a request's is the one whose
            inputs are of its shapes.
        stateful: the same with states, for an app that runs all of the loop in which they change by itself.
    """

    inputs: Annotated[list[TableTensor], Field(max_length=100_000)]
    outputs: Annotated[list[TableTensor], Field(max_length=100_000)]
    before: Annotated[list[_Name], Field(max_length=16)] = []
    chip: ChipCall | None = None
    after: Annotated[list[_Name], Field(max_length=16)] = []
    pieces: Annotated[list[_Name], Field(max_length=1024)] = []
    sized: Annotated[list[ChipCall], Field(max_length=1024)] = []
    stateful: StatefulCall | None = None

    @property
    def files(self) -> list[str]:
        """All files of the segment, the chip's first."""
        return [*([self.chip.file] if self.chip else []), *self.before, *self.after]


class SegmentTable(_Frozen):
    """All segments of an artifact.

    Attributes:
        segments: by id; the pieces that some of them are run as are among them.
        dims: the symbols in their shapes that requests may choose the size of; other symbols follow from these.
    """

    segments: dict[str, SegmentCalls]
    dims: dict[_Name, OpenDim] = {}

    def calls_of(self, segment: str) -> SegmentCalls:
        """What runs a segment or a piece.

        Raises:
            BundleError: the table does not tell of it.
        """
        found = self.segments.get(segment)
        if found is None:
            raise BundleError(f"{TABLE_NAME} does not tell of segment {segment!r}; build the bundle again")
        return found

    def pieces_of(self, calls: SegmentCalls) -> list[SegmentCalls]:
        """What runs in turn for a segment: its pieces, or itself.

        Raises:
            BundleError: a piece is missing, or is in pieces itself.
        """
        found = [self.calls_of(name) for name in calls.pieces] or [calls]
        if calls.pieces and any(piece.pieces for piece in found):
            raise BundleError(f"{TABLE_NAME} has a piece that is in pieces itself; build the bundle again")
        return found

    def to_json(self) -> bytes:
        """The bytes of `segments.json`, the same for the same content."""
        return self.model_dump_json(indent=1, exclude_defaults=True).encode() + b"\n"


def read_table(file: Path) -> SegmentTable:
    """Read `segments.json`.

    Raises:
        BundleError: it is missing or damaged.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise BundleError(f"{file.name} is over {_MOST_BYTES >> 20} MiB; get the bundle again")
        return SegmentTable.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BundleError(f"the bundle's {file.name} cannot be read: {error.strerror}; get it again") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"the bundle's {file.name} is damaged at {where}: {first['msg']}; get it again") from None
