"""Bytes that must be held and moved, computed from sizes; the bounds in the figures use them."""

from statistics import fmean

from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from mqasearch.mask import KVHeads, ModelShape


class KVCount:
    """Bytes of KV cache by the number of tokens, computed from ``ModelShape``.

    A layer with a sliding window keeps at most one token less than the window, as transformers
    does.
    """

    def __init__(self, shape: ModelShape, kv_heads: KVHeads, config: PreTrainedConfig) -> None:
        """Ask transformers which layers of ``config`` have a window.

        ``windows`` has for each layer the tokens that it attends to at most; None = all.
        """
        windows = [getattr(layer, "sliding_window", None) for layer in _cache_layers(config)]
        windows += [None] * (shape.n_layers - len(windows))
        self.windows: tuple[int | None, ...] = tuple(windows)
        self._layers = [
            (2 * heads * shape.head_dim * shape.bytes_per_element, window)
            for heads, window in zip(kv_heads, windows, strict=True)
        ]

    def held(self, n_tokens: int) -> int:
        """Bytes of cache that one sequence of ``n_tokens`` holds."""
        return sum(
            per_token * (n_tokens if window is None else min(n_tokens, window - 1))
            for per_token, window in self._layers
        )

    def read_per_step(self, context: int, n_tokens: int) -> float:
        """Bytes of cache read per decoded token of one sequence.

        This is the mean over the ``n_tokens`` tokens after ``context`` tokens.
        """
        return fmean(self.held(context + step) for step in range(1, n_tokens + 1))


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters; tied ones count once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def weight_bytes_read(model: PreTrainedModel) -> int:
    """Bytes of the parameters that one forward pass reads in full.

    These are all parameters except embedding tables, of which it reads one row per token. A table
    that is tied to the output projection is read in full.
    """
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = {
        id(module.weight): module.weight.nbytes
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and (output is None or module.weight is not output.weight)
    }
    return weight_bytes(model) - sum(tables.values())


def _cache_layers(config: PreTrainedConfig) -> list[object]:
    return list(DynamicCache(config=config).layers)
