"""ONNX Runtime: the target that every tier can fall back to, on the CPU unless another provider is chosen.

A segment is an `.onnx` file whose large weights lie in the bundle's shared weights file, so it also opens in any ONNX
tool. With numerics "exact" the optimizer is kept from blocked layouts, whose rounding depends on where a graph is cut:
a split run then equals the unsplit one bit for bit. `bench/numerics.py` measures what that costs. No other provider
promises that: with one (`ort_providers`), numerics have to be "fast".
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import onnx
import onnx_ir as ir

from flagsplit.errors import ConfigError
from flagsplit.flagir import Segment, extract, to_bytes
from flagsplit.targets.cloud.ort_providers import CPU, FORM, named_provider, provider_for
from flagsplit.targets.interface import (
    CHOICE_PREFIX,
    Artifact,
    CompileOptions,
    Executable,
    LoadOptions,
    Numerics,
    StoredArtifact,
    SupportVerdict,
    TargetDescription,
)
from flagsplit.targets.older_kernels import OLDER, can_be_older, nodes_within
from flagsplit.targets.onnx_engine import DTYPES, open_on_provider, open_onnx
from flagsplit.targets.ort_kernels import Kernel, cpu_kernels, is_for

_YES = SupportVerdict(supported=True)
_MADE_OF = {"Bernoulli": "RandomUniformLike"}
"""Operators that the standard makes of one that has no kernel in every opset."""


class OrtTarget:
    """ONNX Runtime with its CPU provider, or with one for an accelerator."""

    def describe(self) -> TargetDescription:
        """Runs everywhere that the onnxruntime package does."""
        import onnxruntime

        return TargetDescription(
            name="ort",
            version=onnxruntime.__version__,
            dtypes=tuple(sorted(DTYPES.values())),
            max_rank=8,
            static_shapes=False,
            runs_here="yes",
            source="kernel registry of the installed onnxruntime",
            confidence="high",
            free_choices={"provider": FORM},
        )

    def supports(self, node: ir.Node) -> SupportVerdict:
        """Whether the CPU provider has a kernel for its types, or the standard defines the operator by others.

        A kernel for an older version will do where the whole graph can be said in that opset. Nodes of bodies count.
        """
        if self._kernels is None:
            return SupportVerdict(True, source="this onnxruntime does not tell its kernels", confidence="low")
        opsets = {} if node.graph is None else node.graph.opset_imports
        for each in (node, *nodes_within(node)):
            version = each.version or opsets.get(each.domain, 1)
            verdict = self._verdict(each, version, self._kernels)
            if verdict.supported:
                continue
            around = (node,) if node.graph is None else node.graph.all_nodes()
            older = version > OLDER and self._verdict(each, OLDER, self._kernels).supported
            if not (older and can_be_older(around)):
                return verdict
        return _YES

    def _verdict(
        self, node: ir.Node, version: int, known: Mapping[tuple[str, str], Sequence[Kernel]]
    ) -> SupportVerdict:
        """The same of one node as an operator of some opset, without the bodies in it."""
        gap = _gap(node)
        if gap:
            return SupportVerdict(supported=False, reason=gap)
        if node.op_type == "Constant" and not node.domain:
            return _YES  # what a body gives as it is; the engine makes an initializer of it
        kernels = known.get((node.domain, node.op_type), ())
        given: dict[str, str] = {}
        since = version
        if onnx.defs.has(node.op_type, version, node.domain):
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            since = schema.since_version
            if any(getattr(schema, kind, False) for kind in ("has_function", "has_context_dependent_function")):
                made_of = _MADE_OF.get(node.op_type)
                return self._verdict(ir.Node("", made_of, node.inputs[:1]), version, known) if made_of else _YES
            given = _types_of(node, schema)
        fitting = [types for low, high, types in kernels if is_for(since, low, high)]
        if any(_takes(types, given) for types in fitting):
            return _YES
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        types = ", ".join(DTYPES.get(each, each[len("tensor(") : -1]) for each in dict.fromkeys(given.values()))
        text = f"{name} of opset {version}" + (f" on {types}" if fitting else "")
        return SupportVerdict(supported=False, reason=f"ONNX Runtime has no CPU kernel for {text}")

    @cached_property
    def _kernels(self) -> Mapping[tuple[str, str], Sequence[Kernel]] | None:
        return cpu_kernels()

    def compile(self, model: ir.Model, segments: Sequence[Segment], options: CompileOptions) -> Artifact:
        """One `.onnx` file per segment; large weights stay in the shared file.

        Raises:
            ConfigError: the choice "provider" is none that there is, or asks for exact numerics of an accelerator.
        """
        chosen = options.choices.get("provider", CPU)
        name = provider_for(chosen, options.device)
        told: dict[str, str] = {"numerics": options.numerics}
        provider = named_provider(name)
        if provider is not None:
            if options.numerics == "exact":
                raise ConfigError(
                    f"exact numerics are promised on the CPU alone; build with --numerics fast to run on {name}"
                )
            told |= {"provider": name, "precision": provider.precision}
        if "provider" in options.choices:
            told[f"{CHOICE_PREFIX}provider"] = chosen
        files = {f"{segment.id}.onnx": _segment_bytes(model, segment) for segment in segments}
        return Artifact(
            files=files,
            entries={segment.id: f"{segment.id}.onnx" for segment in segments},
            options=told,
        )

    def load(self, artifact: StoredArtifact, segment: str, host: LoadOptions) -> Executable:
        """Open a session; the weights are mapped, not copied, until the engine packs them.

        Raises:
            BundleError: the engine cannot load it.
            ConfigError: it is for a provider that is not here, or that ONNX Runtime fell back from.
        """
        provider = named_provider(artifact.options.get("provider", CPU))
        if provider is not None:
            file = artifact.entry(segment)
            return open_on_provider(file, artifact.weights, host.threads, provider.asked(host.threads), provider.advice)
        numerics: Numerics = "fast" if artifact.options.get("numerics") == "fast" else "exact"
        return open_onnx(artifact.entry(segment), artifact.weights, numerics, host.threads)


def _gap(node: ir.Node) -> str:
    """What a kernel does not do although its types say so; "" if nothing is known."""
    if node.domain:
        return ""
    if node.op_type in ("RNN", "GRU", "LSTM") and node.attributes.get_int("layout", 0) == 1:
        return f"ONNX Runtime runs no {node.op_type} with layout 1, batch first"
    x = node.inputs[0] if node.inputs else None
    empty = x is not None and x.shape is not None and 0 in tuple(x.shape)
    if node.op_type in ("ReduceMax", "ReduceMin") and empty and x is not None and x.dtype == ir.DataType.BOOL:
        return f"ONNX Runtime runs no {node.op_type} of bools over an empty set"
    return ""


def _types_of(node: ir.Node, schema: onnx.defs.OpSchema) -> dict[str, str]:
    """What the schema's type variables stand for at this node, in ONNX's words, as far as its values are typed."""
    found: dict[str, str] = {}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            formal = formals[min(index, len(formals) - 1)] if formals else None
            if formal is not None and value is not None and isinstance(value.type, ir.TensorType):
                found[formal.type_str] = f"tensor({value.type.dtype.name.lower()})"
    return found


def _takes(kernel: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> bool:
    """Whether a kernel is for these types; ONNX Runtime casts float16 to float and back where it has none."""
    return all(
        name not in kernel or kind in kernel[name] or (kind == "tensor(float16)" and "tensor(float)" in kernel[name])
        for name, kind in given.items()
    )


def _segment_bytes(model: ir.Model, segment: Segment) -> bytes:
    """Value shapes stay in: the optimizer fuses more where it knows them, and must fuse as in the whole graph."""
    return to_bytes(extract(model, segment))
