"""Graphs of fixed sizes for `CudaStepModel`: lowered to PyTorch, writing into the caches, recorded and replayed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from flagsplit.flagir.specialize import specialize
from flagsplit.targets.cloud.cuda.compiled import Replay
from flagsplit.targets.cloud.cuda.lowering.program import build_program, to_module
from flagsplit.targets.cloud.cuda.lowering.registry import is_taken
from flagsplit.targets.cloud.cuda.lowering.style import Style
from flagsplit.targets.cloud.cuda.passes import optimize
from flagsplit.targets.cloud.cuda.rowwise import calls
from flagsplit.targets.cloud.cuda.sdk import torch
from flagsplit.targets.generation.slot_cache import SlotCache
from flagsplit.targets.generation.step_model import Logits
from flagsplit.targets.interface import Array
from flagsplit.targets.written_out import write_out


class Lowered:
    """A graph of fixed sizes as a module of PyTorch, by names.

    Attributes:
        inputs: names.
        outputs: names, in order.
        takes_any_cache: whether all that reads `past` and `cross` is attention that asks how long they are.
    """

    def __init__(self, model: ir.Model, dims: Mapping[str, int], dtype: str, device: str) -> None:
        fixed = specialize(model, dims)
        write_out(fixed, is_taken)
        optimize(fixed, is_step=True)
        caches = [value for value in fixed.graph.inputs if (value.name or "").startswith(("past.", "cross."))]
        self.takes_any_cache = all(use.node.op_type == "CachedAttention" for each in caches for use in each.uses())
        program = build_program(fixed, "" if dtype == "float32" else dtype, Style(rows=True))
        self.inputs = [name for name, _ in program.inputs]
        self.outputs = list(program.outputs)
        types = ["float32" if name == "logits" else dtype for name in self.outputs]
        self._module = to_module(program, types, device)

    def run(self, *tensors: Any) -> Sequence[Any]:
        """Outputs in order."""
        made: Sequence[Any] = self._module(*tensors)
        return made


def stepped(
    cache: SlotCache, lowered: Lowered, told: Sequence[str], batch: int, *, gathers: bool
) -> Callable[..., Sequence[Any]]:
    """A step that also writes new keys and values into the cache; gives the logits.

    It takes the values of `told` in order, and if it gathers, the rows; else rows are the first ones.
    """
    past, cross = dict(cache.past), dict(cache.cross)

    def run(*given: Any) -> Sequence[Any]:
        values = dict(zip(told, given, strict=False))
        rows = given[-1] if gathers else None
        for name, array in (*past.items(), *cross.items()):
            values[name] = array.index_select(0, rows) if gathers else array[:batch]
        made = dict(zip(lowered.outputs, lowered.run(*(values[name] for name in lowered.inputs)), strict=True))
        for name, array in past.items():
            if name.endswith(".key"):
                layer = name.split(".")[1]
                new = made[f"new.{layer}.key"], made[f"new.{layer}.value"]
                calls.append(array, past[f"past.{layer}.value"], new, rows, values["past_lengths"])
        return [made["logits"]]

    return run


class Graph:
    """A function of tensors of fixed sizes: replayed on a GPU, run as it is on the CPU.

    Args:
        run: the function.
        examples: what it is recorded with, by which sizes and dtypes are fixed.
        outputs: names of what it gives.
        device: "cuda" or "cpu".
    """

    def __init__(
        self, run: Callable[..., Sequence[Any]], examples: Sequence[Array], outputs: Sequence[str], device: str
    ) -> None:
        self._outputs = outputs
        self._run = run
        self._replay: Replay | None = None
        self._pinned: dict[str, Any] = {}
        tensors = [torch.from_numpy(each).to(device) for each in examples]
        if device == "cuda":
            self._replay = Replay(run, tensors)
            self._given = [torch.empty_like(each, device="cpu", pin_memory=True) for each in tensors]
        else:
            with torch.inference_mode():
                run(*tensors)

    def __call__(self, *arrays: Array) -> dict[str, Any]:
        """Tensors by name; the next call overwrites them."""
        given = [torch.from_numpy(np.ascontiguousarray(each)) for each in arrays]
        with torch.inference_mode():
            if self._replay is None:
                made = self._run(*given)
            else:
                torch.cuda.current_stream().synchronize()  # what was given before has been copied by then
                for pinned, tensor in zip(self._given, given, strict=True):
                    pinned.copy_(tensor)
                made = self._replay(*self._given)
        return dict(zip(self._outputs, made, strict=True))

    def logits(self, *arrays: Array) -> Logits:
        """The logits on the host; the next call overwrites them."""
        made = self(*arrays)["logits"]
        if made.is_cuda:
            if "logits" not in self._pinned:
                self._pinned["logits"] = torch.empty_like(made, device="cpu", pin_memory=True)
            made = self._pinned["logits"].copy_(made, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        array: Logits = made.numpy()
        return array
