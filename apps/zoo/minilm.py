"""all-MiniLM-L6-v2 as a PyTorch module, with the weights of its zoo entry; needs `flagsplit[torch]`."""

from collections.abc import Mapping
from typing import Any

from flagsplit.apps.zoo.store import pull
from flagsplit.errors import ConfigError
from flagsplit.flagir.programs.weights.safetensors import read_safetensors


def minilm_module() -> Any:
    """The sentence encoder as a `torch.nn.Module`, in evaluation mode.

    It takes token ids and a mask, both int64 of shape [batch, length], and gives float32 of shape [batch, 384] and unit
    length.

    Raises:
        ConfigError: torch is not installed.
        PeerError: the weights cannot be fetched.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError("MiniLM needs PyTorch: pip install 'flagsplit[torch]'") from None

    class MiniLm(torch.nn.Module):  # type: ignore[misc]
        """all-MiniLM-L6-v2 as its paper and weights have it: BERT, 6 layers of 384, mean over tokens, unit length."""

        def __init__(self, weights: Mapping[str, Any]) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterDict(
                {name.replace(".", "/"): torch.nn.Parameter(w) for name, w in weights.items()}
            )

        def _w(self, name: str) -> Any:
            return self.weights[name.replace(".", "/")]

        def _linear(self, name: str, x: Any) -> Any:
            return torch.nn.functional.linear(x, self._w(f"{name}.weight"), self._w(f"{name}.bias"))

        def _norm(self, name: str, x: Any) -> Any:
            return torch.nn.functional.layer_norm(x, (384,), self._w(f"{name}.weight"), self._w(f"{name}.bias"), 1e-12)

        def forward(self, ids: Any, mask: Any) -> Any:
            at = "embeddings."
            positions = torch.arange(ids.shape[1])
            x = self._w(f"{at}word_embeddings.weight")[ids] + self._w(f"{at}position_embeddings.weight")[positions]
            x = self._norm(f"{at}LayerNorm", x + self._w(f"{at}token_type_embeddings.weight")[0])
            bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
            for layer in range(6):
                x = self._layer(f"encoder.layer.{layer}.", x, bias)
            weight = mask[:, :, None].to(x.dtype)
            return torch.nn.functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)

        def _layer(self, at: str, x: Any, bias: Any) -> Any:
            def heads(name: str) -> Any:
                y = self._linear(f"{at}attention.self.{name}", x)
                return y.reshape(y.shape[0], y.shape[1], 12, 32).transpose(1, 2)

            scores = heads("query") @ heads("key").transpose(2, 3) / 32**0.5 + bias
            mixed = (scores.softmax(-1) @ heads("value")).transpose(1, 2).reshape(x.shape)
            x = self._norm(f"{at}attention.output.LayerNorm", x + self._linear(f"{at}attention.output.dense", mixed))
            inner = torch.nn.functional.gelu(self._linear(f"{at}intermediate.dense", x))
            return self._norm(f"{at}output.LayerNorm", x + self._linear(f"{at}output.dense", inner))

    file = read_safetensors(pull("minilm"))
    arrays = {name.removeprefix("bert."): file.read(name) for name in file.names}
    # The numbers of the positions are stored too, as integers, which no parameter is.
    return MiniLm({name: torch.from_numpy(each) for name, each in arrays.items() if each.dtype.kind == "f"}).eval()
