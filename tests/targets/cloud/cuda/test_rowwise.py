"""Kernels whose rows do not depend on each other, on the GPU where there is one, else by Triton's interpreter."""

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # it is read when Triton is imported
pytest.importorskip("triton", reason="triton is not installed", exc_type=ImportError)

from flagsplit.targets.cloud.cuda.rowwise import calls  # noqa: E402 it is for where torch is

pytestmark = pytest.mark.slow
KINDS = ("float16", "float32")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tensors go; the kernels take them there."""
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setattr(calls, "takes", lambda x: True)
    return "cpu"


class _Drawn:
    """Random tensors, the same each time."""

    def __init__(self, device: str, kind: str) -> None:
        self._device, self._type = device, getattr(torch, kind)
        self._random = torch.Generator().manual_seed(3)

    def __call__(self, *shape: int) -> Any:
        return torch.randn(*shape, generator=self._random).to(self._device, self._type)


def _near(came: Any, wanted: Any) -> None:
    tolerance = 2e-2 if came.dtype == torch.float16 else 2e-5
    torch.testing.assert_close(came.double().cpu(), wanted.double().cpu(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "extras"), [(96, 64, True), (40, 100, False), (70, 200, True)])
def test_products(device: str, kind: str, n: int, k: int, extras: bool) -> None:
    draw = _Drawn(device, kind)
    x, weights = draw(3, 43, k), draw(n, k) / k**0.5
    bias, residual = (draw(n), draw(3, 43, n)) if extras else (None, None)
    came = calls.linear(x, weights, bias, residual)
    wanted = x.double() @ weights.double().T
    _near(came, wanted + bias + residual if extras else wanted)
    for first, last in ((0, 1), (1, 3)):
        some = calls.linear(
            x[first:last, 5:31], weights, bias, None if residual is None else residual[first:last, 5:31]
        )
        assert torch.equal(some, came[first:last, 5:31])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centers", [False, True])
def test_norms(device: str, kind: str, centers: bool) -> None:
    draw = _Drawn(device, kind)
    x, scale, bias = draw(2, 5, 72) + 1, draw(72), draw(72) if centers else None
    came = calls.norm(x, scale, bias, 1e-5, centers=centers)
    wide = x.double()
    wide = wide - wide.mean(-1, keepdim=True) if centers else wide
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale.double()
    _near(came, wanted if bias is None else wanted + bias.double())
    assert torch.equal(calls.norm(x[1:, 2:3], scale, bias, 1e-5, centers=centers), came[1:, 2:3])


def _attention(q: Any, past: Any, new: Any, lengths: Any) -> Any:
    """One query at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for batch in range(q.shape[0]):
        length = int(lengths[batch])
        for head in range(q.shape[1]):
            of = head // (q.shape[1] // past[0].shape[1])
            for place in range(q.shape[2]):
                k, v = (each[batch, of, :length].double().cpu() for each in past)
                if new is not None:
                    own = (each[batch, of, : place + 1].double().cpu() for each in new)
                    k, v = (torch.cat(pair) for pair in zip((k, v), own, strict=True))
                if len(k):
                    out[batch, head, place] = torch.softmax(k @ q[batch, head, place].double().cpu(), 0) @ v
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 4, 16), (6, 2, 36)])
def test_attention_to_a_cache_and_a_chunk(device: str, kind: str, heads: int, key_heads: int, size: int) -> None:
    draw = _Drawn(device, kind)
    lengths = torch.tensor([0, 63, 65, 130], device=device)
    keys, values = (draw(4, key_heads, 200, size) for _ in range(2))
    chunk = 9
    q = draw(4, heads, chunk, size) / size**0.5
    new = tuple(draw(4, chunk, key_heads, size).transpose(1, 2) for _ in range(2))
    came = calls.attention(q, (keys, values), new, lengths, 1.0)
    _near(came, _attention(q, (keys, values), new, lengths))
    calls.append(keys, values, new, None, lengths)
    for place in (0, 4, 8):  # one token at a time, in shorter arrays, in another company
        own = tuple(each[1:3, :, place : place + 1] for each in new)
        shorter = (keys[1:3, :, :96], values[1:3, :, :96])
        one = calls.attention(q[1:3, :, place : place + 1], shorter, own, lengths[1:3] + place, 1.0)
        assert torch.equal(one, came[1:3, :, place : place + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_attention_to_an_encoder(device: str, kind: str) -> None:
    draw = _Drawn(device, kind)
    lengths = torch.tensor([7, 0, 100], device=device)
    past = (draw(3, 2, 128, 16), draw(3, 2, 128, 16))
    q = draw(3, 2, 5, 16) / 4
    came = calls.attention(q, past, None, lengths, 1.0)
    _near(came, _attention(q, past, None, lengths))
    assert torch.equal(
        calls.attention(q[2:, :, 1:3], (past[0][2:], past[1][2:]), None, lengths[2:], 1.0), came[2:, :, 1:3]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("turned", "woven"), [(20, False), (16, True), (12, True)])
def test_rotary_positions(device: str, kind: str, turned: int, woven: bool) -> None:
    draw = _Drawn(device, kind)
    x, angles = draw(2, 7, 3, 20).transpose(1, 2), draw(2, 7, turned // 2)
    came = calls.rotary(x, angles.cos(), angles.sin(), turned, woven=woven)
    pairs = x[..., :turned].double()
    first, second = (pairs[..., ::2], pairs[..., 1::2]) if woven else pairs.chunk(2, -1)
    cos, sin = (each.double().unsqueeze(1) for each in (angles.cos(), angles.sin()))
    made = [first * cos - second * sin, second * cos + first * sin]
    both = torch.stack(made, -1).flatten(-2) if woven else torch.cat(made, -1)
    _near(came, torch.cat([both, x[..., turned:].double()], -1))


@pytest.mark.parametrize("kind", KINDS)
def test_gates_and_what_is_appended_to_rows(device: str, kind: str) -> None:
    draw = _Drawn(device, kind)
    a, b = draw(2, 3, 40).chunk(2, -1)
    _near(calls.gate(a, b), torch.nn.functional.silu(a.double()) * b.double())
    keys, values = draw(5, 2, 10, 12), draw(5, 2, 10, 12)
    expected = [keys.clone(), values.clone()]
    new = (draw(2, 3, 2, 12).transpose(1, 2), draw(2, 3, 2, 12).transpose(1, 2))
    rows, lengths = torch.tensor([3, 1], device=device), torch.tensor([0, 7], device=device)
    for array, each in zip(expected, new, strict=True):
        array[3, :, 0:3], array[1, :, 7:10] = each[0], each[1]
    calls.append(keys, values, new, rows, lengths)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
