"""The cost view of a graph: blocks, the values between them, and what each costs to run, hold and send.

This is what the splitter reads. It knows no operator, only work by class, and no shape, only bytes: symbolic
dimensions are bound to the nominal sizes recorded in `dims`. How blocks are found is in `flagir.blocks`, how work
is counted in `flagir.figures`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

OP_CLASSES = (
    "conv",  # dense convolution, also transposed
    "depthwise",  # convolution with one input channel per group
    "matmul",  # MatMul, Gemm, Attention, Einsum
    "recurrent",  # LSTM, GRU, RNN
    "elementwise",  # activations, arithmetic, casts
    "reduce",  # reductions, pooling, normalisation, softmax
    "movement",  # reshape, transpose, concat, slice, gather, pad, resize
    "control",  # If, Loop, Scan and everything not listed
)
"""The classes of work that a device is rated for, one efficiency each."""


@dataclass(frozen=True)
class LoopWork:
    """What a loop inside a block does, trip by trip; a decoder is one, and a trip of it a token.

    Attributes:
        name: of the loop's node.
        trips: how often its body is expected to run.
        basis: where that is known from: "said" for it, "constant" in the graph, or "assumed", once.
        flops: floating-point operations of a trip, the mean of all after the first.
        weight_bytes: initializers that a trip reads.
        captured_bytes: activations from outside that each trip reads, such as cross-attention keys and values.
        state_bytes: what the first trip leaves, such as the keys and values of a prompt.
        growth_bytes: what each later trip adds to it, such as a token's keys and values.
        scratch_bytes: the most that a trip holds beside what is carried and captured.
        launches: contractions in a trip, each of which an engine dispatches.
    """

    name: str
    trips: int
    basis: str
    flops: float
    weight_bytes: int
    captured_bytes: int
    state_bytes: int
    growth_bytes: float
    scratch_bytes: int
    launches: int

    @property
    def last_state_bytes(self) -> float:
        """What is carried out of the last trip: the most that is held."""
        return self.state_bytes + max(self.trips - 1, 0) * self.growth_bytes

    @property
    def traffic_bytes(self) -> float:
        """State and captured activations that all trips together read, and what they add, each trip once."""
        growing = self.growth_bytes * max(self.trips - 1, 0) / 2
        return self.trips * (self.captured_bytes + self.state_bytes + growing)

    @property
    def held_bytes(self) -> float:
        """What it holds beside weights and what it captures."""
        return self.last_state_bytes + self.scratch_bytes

    @property
    def stream_bytes(self) -> float:
        """What one more stream holds on a tier that decodes several at once."""
        return self.last_state_bytes + self.captured_bytes


GRAPH_INPUT = -1
"""`BlockValue.producer` of a graph input."""


@dataclass(frozen=True)
class Block:
    """A unit of placement: nodes that no cut may divide.

    Attributes:
        index: position in the topological order of the graph's blocks.
        name: name of the block's heaviest node, unique in the graph.
        nodes: names of its nodes, in execution order.
        op_types: ONNX operator of each node.
        flops: floating-point operations (2 x MACs) by class, `OP_CLASSES`.
        read_bytes: activation bytes that enter the block.
        write_bytes: activation bytes that leave it.
        weight_bytes: bytes of its initializers; a tensor shared between blocks counts in the first of them.
        touched_weight_bytes: weight bytes that one run reads (an embedding reads rows, not the table).
        signature: digest of the work, the same for blocks that do the same; "" where it is unknown, or is what a loop
            is expected to do (`flagsplit.flagir.signatures`).
        features: numbers about the work that a regression over blocks can use.
        loops: its loops, if it has any; their work over all trips is in `flops` and `touched_weight_bytes`.
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    flops: Mapping[str, float]
    read_bytes: int
    write_bytes: int
    weight_bytes: int
    touched_weight_bytes: int
    signature: str = ""
    features: Mapping[str, float] = field(default_factory=dict)
    loops: tuple[LoopWork, ...] = ()


@dataclass(frozen=True)
class BlockValue:
    """A tensor that passes between blocks, enters the graph or leaves it.

    Attributes:
        name: the value's name in the graph.
        size_bytes: its size at the nominal dimensions.
        producer: index of the block that makes it, or `GRAPH_INPUT`.
        consumers: indices of the blocks that read it, ascending, without repeats.
        is_output: whether it is a graph output too.
        codec_bytes: its size by each lossy codec that takes it, parameters included.
    """

    name: str
    size_bytes: int
    producer: int
    consumers: tuple[int, ...]
    is_output: bool = False
    codec_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockGraph:
    """A whole graph as blocks and values; `blocks[i].index == i` and every value flows from lower to higher index.

    Attributes:
        name: the graph's name.
        blocks: in topological order.
        values: graph inputs first, then by producer. A graph input that is also an output appears once.
        dims: the nominal size that each symbolic dimension was bound to.
    """

    name: str
    blocks: tuple[Block, ...]
    values: tuple[BlockValue, ...]
    dims: Mapping[str, int]

    @property
    def inputs(self) -> tuple[BlockValue, ...]:
        """The graph's inputs."""
        return tuple(value for value in self.values if value.producer == GRAPH_INPUT)

    @property
    def outputs(self) -> tuple[BlockValue, ...]:
        """The graph's outputs."""
        return tuple(value for value in self.values if value.is_output)
