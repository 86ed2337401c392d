"""Driving the graphs of a program: streams of any lengths as one padded batch, caches kept here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from tests.flagir.models import Array

from flagsplit.flagir import violations

GARBAGE = 7.5


def engine(model: ir.Model) -> ort.InferenceSession:
    """A session of one thread for a canonical model."""
    assert violations(model) == ()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(inside(model)).SerializeToString(), options, ["CPUExecutionProvider"])


def inside(model: ir.Model) -> ir.Model:
    """A copy with its weights in memory."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(np.array(value.const_value.numpy()), name=value.name)
    return copy


def answers(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs by name."""
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


@dataclass
class Stream:
    """Tokens, how many of them are done, and what was kept of those."""

    tokens: list[int]
    cache: dict[str, Array]
    cross: dict[str, Array] = field(default_factory=dict)
    done: int = 0

    @property
    def frames(self) -> int:
        return next((array.shape[1] for array in self.cross.values()), 0)


class Engine:
    """Runs steps of streams of any lengths as one padded batch."""

    def __init__(self, step: ir.Model, prefill: ir.Model | None = None) -> None:
        self.step = engine(step)
        self.prefill = engine(prefill) if prefill is not None else None
        self.empty = {
            value.name.removeprefix("past."): np.zeros((value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.step.get_inputs()
            if value.name.startswith("past.")
        }

    def open(self, tokens: Sequence[int], hidden: Array | None = None) -> Stream:
        """A stream; `hidden` is [frames, width]."""
        stream = Stream(list(tokens), dict(self.empty))
        if self.prefill is not None:
            assert hidden is not None
            made = answers(self.prefill, {"hidden": hidden[None].astype(np.float32)})
            stream.cross = {name: array[0] for name, array in made.items()}
        return stream

    def run(self, streams: Sequence[Stream], counts: Sequence[int], spare: int = 0, rows: Array | None = None) -> Array:
        """The first output after the next `counts[i]` tokens of each stream.

        Args:
            streams: to go on.
            counts: tokens of each.
            spare: how much more padding than is needed.
            rows: in place of tokens, for a part that does not begin with them.
        """
        pairs = list(zip(streams, counts, strict=True))
        chunk = max(counts) + spare
        tokens = [stream.tokens[stream.done : stream.done + count] for stream, count in pairs]
        feeds: dict[str, Array] = {
            "tokens": np.array([each + [1] * (chunk - len(each)) for each in tokens], np.int64),
            "positions": np.array([np.arange(chunk) + stream.done for stream in streams], np.int64),
            "past_lengths": np.array([stream.done for stream in streams], np.int64),
            "last": np.array(counts, np.int64) - 1,
        }
        if rows is not None:
            feeds["rows"] = rows
        past = max(stream.done for stream in streams) + spare
        for name in self.empty:
            feeds[f"past.{name}"] = np.stack([padded(stream.cache[name], past) for stream in streams])
        frames = max(stream.frames for stream in streams) + spare
        for name in streams[0].cross:
            feeds[name] = np.stack([padded(stream.cross[name], frames) for stream in streams])
        feeds["cross_lengths"] = np.array([stream.frames for stream in streams], np.int64)
        wanted = {value.name for value in self.step.get_inputs()}
        found = answers(self.step, {name: array for name, array in feeds.items() if name in wanted})
        for row, (stream, count) in enumerate(pairs):
            stream.done += count
            for name in self.empty:
                new = found[f"new.{name}"][row, :, :count]
                stream.cache[name] = np.concatenate([stream.cache[name], new], axis=1)
        return found[self.step.get_outputs()[0].name]


def padded(heads: Array, length: int) -> Array:
    return np.pad(heads, ((0, 0), (0, length - heads.shape[1]), (0, 0)), constant_values=GARBAGE)


def close(found: Array, wanted: Array, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))
