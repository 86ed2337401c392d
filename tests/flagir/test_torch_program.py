"""PyTorch's programs, modules and files as FlagIR. Skipped where torch is not installed (`make test-torch`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import flagsplit
from flagsplit.apps.zoo.minilm import minilm_module
from flagsplit.errors import ConfigError, ModelError, PeerError
from flagsplit.flagir import Skeleton, block_graph, canonicalize, nominal_dims, violations
from flagsplit.flagir.frontends import torch_program

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


class Head(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Any, scale: Any) -> tuple[Any, Any]:
        hidden = self.norm(self.linear(x)).relu() * scale
        return hidden, hidden.sum(dim=1)


def inputs(batch: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 8, generator=generator), torch.tensor(2.0)


def run(model: ir.Model, feeds: Mapping[str, Any]) -> list[Any]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: value.numpy() for name, value in feeds.items()}))


def test_a_module_keeps_its_dynamic_batch_and_its_answers() -> None:
    module = Head().train()
    model = torch_program.from_module(
        module, inputs(2), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}, "scale": None}
    )
    assert module.training
    canonicalize(model)
    assert violations(model) == ()
    assert not isinstance(model.graph.inputs[0].shape[0], int)  # type: ignore[index]
    module.eval()
    for batch in (1, 5):
        x, scale = inputs(batch)
        came = run(model, {"x": x, "scale": scale})
        for expected, value in zip(module(x, scale), came, strict=True):
            np.testing.assert_allclose(value, expected.detach().numpy(), atol=1e-5)


def test_a_program_and_its_file_are_the_same(tmp_path: Path) -> None:
    program = torch.export.export(Head().eval(), inputs(2))
    path = tmp_path / "head.pt2"
    torch.export.save(program, path)
    feeds = dict(zip(("x", "scale"), inputs(2), strict=True))
    answers = [run(torch_program.from_program(program), feeds), run(torch_program.read_pt2(path, trusted=True), feeds)]
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_is_not_read_unless_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "stranger.pt2"
    path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match="--trusted"):
        torch_program.read_pt2(path, trusted=False)
    with pytest.raises(ModelError, match=r"torch\.export\.save"):
        torch_program.read_pt2(path, trusted=True)
    with pytest.raises(ModelError, match="no such"):
        torch_program.read_pt2(tmp_path / "absent.pt2", trusted=True)


def test_a_module_that_cannot_be_traced_says_why() -> None:
    class Branches(nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + 1 if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="cannot trace Branches"):
        torch_program.from_module(Branches(), (torch.ones(2),))


@pytest.mark.slow
def test_minilm_from_its_package() -> None:
    try:
        module = minilm_module()
    except PeerError as error:
        pytest.skip(f"offline: {error}")
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1000, 20000, (2, 16), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    model = torch_program.from_module(module, (ids, mask), dynamic_shapes={"ids": dims, "mask": dims})
    canonicalize(model)
    assert violations(model) == ()
    skeleton = Skeleton(model)
    assert len(block_graph(model, nominal_dims(skeleton, {}), skeleton).blocks) > 20
    for batch, length in ((2, 16), (3, 9)):
        some = torch.randint(1000, 20000, (batch, length), generator=generator)
        every = torch.ones_like(some)
        (came,) = run(model, {"ids": some, "mask": every})
        expected = module(some, every).detach().numpy()
        cosine = (came * expected).sum(1) / np.linalg.norm(came, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() >= 0.99999


def test_a_module_becomes_a_bundle_that_answers_like_it(tmp_path: Path) -> None:
    module = Head().eval()
    dims = {"x": {0: torch.export.Dim.DYNAMIC}, "scale": None}
    path = tmp_path / "head.flagsplit"
    built = flagsplit.build(module, "phone,cloud", path, example_inputs=inputs(2), dynamic_shapes=dims)
    assert built.planning.pool.plans
    x, scale = inputs(3)
    with flagsplit.connect(flagsplit.open(path, cache=tmp_path / "cache"), {}, keys=tmp_path / "keys") as session:
        answer = session.run({"x": x.numpy(), "scale": scale.numpy()}, plan="all-phone")
    for expected, came in zip(module(x, scale), answer.values(), strict=True):
        np.testing.assert_allclose(np.asarray(came, np.float32), expected.detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="example_inputs"):
        flagsplit.build(module, "phone,cloud", tmp_path / "none.flagsplit")
    with pytest.raises(ConfigError, match="came int"):
        flagsplit.build(7, "phone,cloud", tmp_path / "none.flagsplit")
