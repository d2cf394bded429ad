"""Drives MLX-LM, in MLX-LM's environment; requests and answers are lines of JSON."""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import driver
import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

_PREFILL_STEP = 2048  # as mlx_lm.generate does


class Model:
    """A loaded model. MLX chooses its own number of threads, and its caches grow as needed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.model, _ = load_model(
            Path(settings["model"]), trust_remote_code=settings["trust_remote_code"]
        )
        kind = getattr(mx, settings["dtype"])
        self.model.update(
            tree_map(
                lambda p: p.astype(kind) if mx.issubdtype(p.dtype, mx.floating) else p,
                self.model.parameters(),
            )
        )
        mx.eval(self.model.parameters())

    def log_probs(self, tokens: list[list[int]]) -> list[list[float]]:
        return [self._log_probs(prompt) for prompt in tokens]

    def _log_probs(self, prompt: list[int]) -> list[float]:
        logits = self.model(mx.array([prompt]), cache=make_prompt_cache(self.model))[0, :-1]
        logits = logits.astype(mx.float32)
        chosen = mx.take_along_axis(logits, mx.array(prompt[1:])[:, None], axis=-1)[:, 0]
        found: list[float] = (chosen - mx.logsumexp(logits, axis=-1)).tolist()
        return found

    def generate(self, tokens: list[list[int]], n_tokens: int) -> list[list[int]]:
        # generate_step, unlike stream_generate, does not stop at the end-of-text token
        return [
            [
                int(token)
                for token, _ in generate_step(mx.array(prompt), self.model, max_tokens=n_tokens)
            ]
            for prompt in tokens
        ]

    def cache_bytes_per_token(self) -> float:
        """Bytes of the arrays in the cache over the number of tokens that they have room for.

        Arrays grow by 256 tokens at a time, and those of a sliding window stop growing.
        """
        cache = make_prompt_cache(self.model)
        mx.eval(self.model(mx.array([[1, 1]]), cache=cache))
        return float(
            sum(
                array.nbytes / array.shape[2]
                for layer in cache
                for array in (layer.keys, layer.values)
            )
        )

    def time(self, context: int, batch_size: int, n_tokens: int) -> dict[str, float]:
        n_words = int(self.model(mx.array([[1]])).shape[-1])
        prompt = mx.random.randint(0, n_words, (batch_size, context))
        mx.eval(prompt)
        cache = make_prompt_cache(self.model)
        start = time.perf_counter()
        for first in range(0, context, _PREFILL_STEP):
            logits = self.model(prompt[:, first : first + _PREFILL_STEP], cache=cache)
            token = logits[:, -1].argmax(-1, keepdims=True)
            mx.eval(token, [layer.state for layer in cache])
        prefilled = time.perf_counter()
        for _ in range(n_tokens):
            token = self.model(token, cache=cache)[:, -1].argmax(-1, keepdims=True)
            mx.eval(token)
        end = time.perf_counter()
        return {"prefill": prefilled - start, "decode": (end - prefilled) / n_tokens}


def _load(settings: dict[str, Any]) -> tuple[str, Mapping[str, Callable[..., Any]]]:
    model = Model(settings)
    known = (model.log_probs, model.generate, model.cache_bytes_per_token, model.time)
    return version("mlx-lm"), {each.__name__: each for each in known}


if __name__ == "__main__":
    driver.serve(_load)
