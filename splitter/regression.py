"""Seconds of blocks that nobody measured, learned from those that were.

In steps, all in NumPy. The roofline, scaled by how far it is off as a whole. Then a linear law: so many seconds per
FLOP or element of each operator, per byte, per node and per element that a matrix product packs, none below zero, each
drawn to what the device's figures say of it where few blocks speak of it. Then neighbors: a Gaussian process over the
logarithm of what the law got wrong, which finds that, say, narrow matrix products are slow here. Each step has to prove
itself on blocks left out, else the plainer one stands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagsplit.flagir.blockgraph import Block
from flagsplit.splitter.costs import Tier

Array = NDArray[np.float64]
Features = Mapping[str, float]
"""Of one block: `flagsplit.flagir.signatures.features_of`, and `nodes`, `read_bytes`, `write_bytes`, `weight_bytes`."""

_CONTRACTING = ("conv", "depthwise", "matmul", "recurrent")
_FLOAT_BYTES = 4
_PULL = 1e-2
"""How strongly a coefficient is drawn to the device's figure, against one block's squared relative error."""
_STEPS = 1500
_ROUNDS = 3
_FOLDS = 8
_REACHES = (0.5, 1.0, 2.0)
_NOISES = (0.03, 0.1, 0.3)
_FEWEST = 4
"""With fewer measured blocks than this no more than a factor is learned."""
_LEAST_S = 1e-7


@dataclass(frozen=True)
class Prediction:
    """What the regression says.

    Attributes:
        seconds: one figure per block asked for.
        method: "roofline", "scaled roofline", "linear" or "linear, neighbors".
        error: median relative error on measured blocks that were left out; NaN if none was.
    """

    seconds: Array
    method: str
    error: float


def predict_seconds(measured: Sequence[Features], seconds: Array, wanted: Sequence[Features], tier: Tier) -> Prediction:
    """Seconds of unmeasured blocks.

    Args:
        measured: features of the measured blocks.
        seconds: of each of them.
        wanted: features of the blocks to predict.
        tier: whose device's figures to start from.
    """
    fits: dict[str, _Fit] = {"roofline": _roofline, "scaled roofline": _scaled}
    if len(measured) >= _FEWEST:
        fits |= {"linear": _linear, "linear, neighbors": _neighbors}
    if len(measured) < 2:
        return Prediction(_roofline(measured, seconds, wanted, tier), "roofline", float("nan"))
    errors = {name: _left_out(fit, measured, seconds, tier) for name, fit in fits.items()}
    method = min(errors, key=lambda name: float(np.mean(errors[name])))
    error = float(np.expm1(np.median(errors[method])))
    return Prediction(fits[method](measured, seconds, wanted, tier), method, error)


_Fit = Callable[[Sequence[Features], Array, Sequence[Features], Tier], Array]


def _left_out(fit: _Fit, measured: Sequence[Features], seconds: Array, tier: Tier) -> Array:
    """Log errors on blocks that the fit did not see: each alone if they are few, else an eighth of them at a time."""
    found = np.empty(len(measured))
    folds = np.arange(len(measured)) % min(_FOLDS, len(measured))
    for fold in range(int(folds.max()) + 1):
        kept, left = np.flatnonzero(folds != fold).tolist(), np.flatnonzero(folds == fold).tolist()
        said = fit([measured[i] for i in kept], seconds[kept], [measured[i] for i in left], tier)
        found[left] = np.abs(np.log(said / seconds[left]))
    return found


def features_of_block(block: Block) -> dict[str, float]:
    """All numbers about a block that the regression reads; `Features` names them."""
    return {
        **block.features,
        "nodes": float(len(block.nodes)),
        "read_bytes": float(block.read_bytes) + sum(loop.traffic_bytes for loop in block.loops),
        "write_bytes": float(block.write_bytes),
        "weight_bytes": float(block.touched_weight_bytes),
    }


def roofline_seconds(features: Features, tier: Tier) -> float:
    """The roofline of `flagsplit.splitter.costs`, from a block's features."""
    device = tier.device
    work = (pair for pair in features.items() if "." in pair[0] and not pair[0].startswith("movement."))
    compute = sum(amount / device.efficiency[name.partition(".")[0]].value for name, amount in work) / tier.peak_flops
    traffic = sum(features.get(name, 0.0) for name in ("read_bytes", "write_bytes", "weight_bytes"))
    return float(max(compute, traffic / device.memory_bandwidth.value) + device.dispatch.value)


def _roofline(_measured: Sequence[Features], _seconds: Array, wanted: Sequence[Features], tier: Tier) -> Array:
    return np.array([max(roofline_seconds(features, tier), _LEAST_S) for features in wanted])


def _scaled(measured: Sequence[Features], seconds: Array, wanted: Sequence[Features], tier: Tier) -> Array:
    off = np.median(np.log(seconds / _roofline(measured, seconds, measured, tier)))
    return np.asarray(_roofline(measured, seconds, wanted, tier) * np.exp(off))


def _linear(measured: Sequence[Features], seconds: Array, wanted: Sequence[Features], tier: Tier) -> Array:
    law = _Law.fit(measured, seconds, tier)
    return law.seconds(wanted)


def _neighbors(measured: Sequence[Features], seconds: Array, wanted: Sequence[Features], tier: Tier) -> Array:
    law = _Law.fit(measured, seconds, tier)
    said, asked = law.seconds(measured), law.seconds(wanted)
    known, new = places(measured, said), places(wanted, asked)
    wrong = np.log(seconds / said)
    reach, noise = min(
        ((reach, noise) for reach in _REACHES for noise in _NOISES), key=lambda pair: _miss(known, wrong, *pair)
    )
    weights = np.linalg.solve(_alike(known, known, reach) + noise * np.eye(len(known)), wrong)
    corrections = np.clip(_alike(new, known, reach) @ weights, wrong.min(), wrong.max())
    return np.asarray(asked * np.exp(corrections))


def _miss(places: Array, wrong: Array, reach: float, noise: float) -> float:
    """Mean error of the Gaussian process on each block when it is left out (Rasmussen and Williams, 5.4.2)."""
    inverse = np.linalg.inv(_alike(places, places, reach) + noise * np.eye(len(places)))
    return float(np.mean(np.abs(inverse @ wrong / np.diag(inverse))))


def _alike(a: Array, b: Array, reach: float) -> Array:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.exp(-np.maximum(squares, 0) / (2 * reach**2)))


def places(blocks: Sequence[Features], seconds: Array) -> Array:
    """Where blocks stand among each other: kind of work first, then sides of the product, size and traffic.

    Args:
        blocks: features of each.
        seconds: what each takes, roughly.

    Returns:
        Shape (blocks, dimensions); blocks at a distance of 1 may differ noticeably in what the model gets wrong.
    """
    rows = []
    for features, said in zip(blocks, seconds, strict=True):
        kind = _kind(features)
        sides = [np.log(features.get(name, 1.0) or 1.0) for name in ("rows", "columns", "inner", "window")]
        traffic = np.log1p(features.get("read_bytes", 0.0) + features.get("write_bytes", 0.0))
        sizes = [np.log(said), traffic * 2 / 3, np.log(features.get("nodes", 1.0) or 1.0)]
        rows.append([sides[0] * 2 / 3, *sides[1:], *sizes, *(6.0 * (kind == name) for name in _KINDS)])
    return np.array(rows) / 2


_KINDS = ("conv", "depthwise", "matmul", "recurrent", "integer", "elementwise", "reduce", "movement", "control")


def _kind(features: Features) -> str:
    """What most of a block's work is; products of whole numbers are of a kind of their own."""
    amounts = {name: amount for name, amount in features.items() if "." in name}
    if not amounts:
        return "movement"
    name = max(amounts, key=lambda each: (each.partition(".")[0] in _CONTRACTING, amounts[each]))
    return "integer" if "Integer" in name or "QLinear" in name else name.partition(".")[0]


@dataclass(frozen=True, eq=False)
class _Law:
    """Seconds as a sum of amounts times coefficients; what no measured block has keeps the device's figure."""

    coefficients: Mapping[str, float]
    tier: Tier

    def seconds(self, blocks: Sequence[Features]) -> Array:
        sums = [
            sum(amount * self._coefficient(name) for name, amount in _amounts(features).items()) for features in blocks
        ]
        return np.maximum(np.array(sums, np.float64), _LEAST_S)

    def _coefficient(self, name: str) -> float:
        known = self.coefficients.get(name)
        return _figure(name, self.tier) if known is None else known

    @classmethod
    def fit(cls, blocks: Sequence[Features], seconds: Array, tier: Tier) -> "_Law":
        amounts = [_amounts(features) for features in blocks]
        names = sorted({name for each in amounts for name in each})
        figures = np.array([_figure(name, tier) for name in names])
        matrix = np.array([[each.get(name, 0.0) for name in names] for each in amounts]) * figures
        scale = seconds.copy()
        factors = np.ones(len(names))
        for _ in range(_ROUNDS):
            factors = _nonnegative(matrix / scale[:, None], seconds / scale, factors)
            # With the mean of measured and said in the denominator, saying too little is as wrong as saying too much.
            scale = np.sqrt(seconds * np.maximum(matrix @ factors, seconds / 10))
        return cls(dict(zip(names, (factors * figures).tolist(), strict=True)), tier)


def _nonnegative(matrix: Array, target: Array, start: Array) -> Array:
    """Factors of at least 0, drawn to 1, that minimize the squared error; multiplicative updates (Lee and Seung)."""
    left = matrix.T @ matrix + _PULL * np.eye(matrix.shape[1])
    right = matrix.T @ target + _PULL
    factors: Array = np.maximum(start, 1e-6)
    for _ in range(_STEPS):
        factors = np.asarray(factors * right / (left @ factors))
    return factors


def _amounts(features: Features) -> dict[str, float]:
    """What a block has of everything that may cost time."""
    rows, columns, inner = (features.get(name, 0.0) for name in ("rows", "columns", "inner"))
    found = {name: amount for name, amount in features.items() if "." in name and amount > 0}
    found |= {name: features.get(name, 0.0) for name in ("nodes", "weight_bytes")}
    found["bytes"] = features.get("read_bytes", 0.0) + features.get("write_bytes", 0.0)
    if columns > 1:
        found["unfolded" if features.get("window", 1.0) > 1 else "packed"] = rows * inner
        found |= {"packed weights": inner * columns, "stored": rows * columns}
    return found


def _figure(name: str, tier: Tier) -> float:
    """Seconds per unit as the device's figures have it."""
    device = tier.device
    kind, dot, _ = name.partition(".")
    if kind == "nodes":
        return max(device.dispatch.value, _LEAST_S)
    if dot and kind != "movement":
        return 1 / (device.efficiency[kind].value * tier.peak_flops)
    return (1 if "bytes" in name else _FLOAT_BYTES) / device.memory_bandwidth.value
