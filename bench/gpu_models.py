"""The networks of `gpu.py` as plain PyTorch modules, with random weights of a fixed seed."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """Three convolutions around which the input goes as well (K. He et al., 2015)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((channels, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in sizes)
        self.down = None
        if stride != 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.down = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.norms[0](self.convs[0](x)))
        y = functional.relu(self.norms[1](self.convs[1](y)))
        y = self.norms[2](self.convs[2](y))
        return functional.relu(y + (x if self.down is None else self.down(x)))


class ResNet50(nn.Module):
    """Takes pictures [batch, 3, 224, 224], gives [batch, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        channels = 64
        for stage, depth in enumerate((3, 4, 6, 3)):
            for at in range(depth):
                blocks.append(Bottleneck(channels, 64 << stage, 2 if stage and not at else 1))
                channels = 256 << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(self.pool(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention by PyTorch's fused operator."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Any, mask: Any = None) -> Any:
        batch, steps, width = x.shape
        q, k, v = (
            each(x).view(batch, steps, self.heads, width // self.heads).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, steps, width))


class Layer(nn.Module):
    """A transformer layer that normalizes before or after each half."""

    def __init__(self, width: int, heads: int, inner: int, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.attention = Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Any, mask: Any = None) -> Any:
        if self.before:
            x = x + self.attention(self.norms[0](x), mask)
            return x + self.down(functional.gelu(self.up(self.norms[1](x))))
        x = self.norms[0](x + self.attention(x, mask))
        return self.norms[1](x + self.down(functional.gelu(self.up(x))))


class MiniLm(nn.Module):
    """A sentence encoder of the shape of all-MiniLM-L6-v2: token ids and mask [batch, length] to [batch, 384]."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 384), nn.Embedding(512, 384)
        self.norm = nn.LayerNorm(384)
        self.layers = nn.ModuleList(Layer(384, 12, 1536, before=False) for _ in range(6))
        self.register_buffer("positions", torch.arange(length))

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.norm(self.words(ids) + self.places(self.positions))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        weight = mask[:, :, None].to(x.dtype)
        return functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


class WhisperEncoder(nn.Module):
    """The encoder of Whisper-base: mel spectra [batch, 80, 3000] to [batch, 1500, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(80, 512, 3, 1, 1), nn.Conv1d(512, 512, 3, 2, 1)
        self.places = nn.Parameter(torch.randn(1500, 512) * 0.02)
        self.layers = nn.ModuleList(Layer(512, 8, 2048, before=True) for _ in range(6))
        self.norm = nn.LayerNorm(512)

    def forward(self, mel: Any) -> Any:
        x = functional.gelu(self.second(functional.gelu(self.first(mel))))
        x = x.transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def randomized(module: nn.Module) -> nn.Module:
    """In evaluation mode, its batch normalizations with statistics as training leaves them."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.running_mean, -0.1, 0.1)
            nn.init.uniform_(each.running_var, 0.8, 1.2)
            nn.init.uniform_(each.weight, 0.4, 0.6)
    return module.eval()
