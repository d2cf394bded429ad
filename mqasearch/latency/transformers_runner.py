"""Latency in transformers: all variants are in this process and share the original's weights.

Decoding is transformers' own, greedy, with its ``DynamicCache``, which is copied at every token.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mqasearch.conversion import ConvertibleModel
from mqasearch.latency.byte_counts import KVCount, weight_bytes, weight_bytes_read
from mqasearch.latency.compact_models import CompactModels
from mqasearch.latency.machine import no_collection, peak_growth, seconds
from mqasearch.latency.runner import (
    EngineUsed,
    Run,
    Runner,
    Weights,
    check_memory,
    too_large,
)
from mqasearch.latency.workload import Setting, Workload
from mqasearch.mask import KVHeads

TRANSFORMERS = "transformers"

_SEED = 0  # of the prompts
_Result = TypeVar("_Result")


class TransformersRunner(Runner):
    """What ``mqasearch convert --format hf`` would write, in memory."""

    together = True

    def __init__(
        self,
        convertible: ConvertibleModel,
        variants: Mapping[str, KVHeads],
        kv_counts: Mapping[str, KVCount],
        workload: Workload,
    ) -> None:
        """Make the variants' models; only the first one may be in the original's code.

        Raises:
            ModelError: a model that cannot be converted.
            MaskError: KV heads that do not fit the model.
            UserError: there is not enough memory.
        """
        compact = CompactModels(convertible)
        self._models = {
            name: compact.model(kv_heads, even_original=number > 0)
            for number, (name, kv_heads) in enumerate(variants.items())
        }
        self._n_tokens = workload.n_tokens
        self._device = convertible.model.device
        check_memory(self._device, kv_counts, workload)
        attention = str(convertible.model.config._attn_implementation)
        self.used = EngineUsed(TRANSFORMERS, transformers.__version__, None, attention)
        short = Setting(context=4, batch_size=1)
        for model in self._models.values():  # reads every weight before growth is measured
            run_once(model, _prompt(model, short), n_tokens=2)

    def weights(self, variant: str) -> Weights:
        model = self._models[variant]
        return Weights(weight_bytes(model), weight_bytes_read(model))

    def run(self, variant: str, setting: Setting) -> Run:
        model = self._models[variant]
        prompt = _prompt(model, setting)
        return _in_memory(setting, lambda: run_once(model, prompt, self._n_tokens))

    def growth(self, variant: str, setting: Setting) -> int | None:
        model = self._models[variant]
        prompt = _prompt(model, setting)
        return _in_memory(
            setting,
            lambda: peak_growth(self._device, lambda: run_once(model, prompt, self._n_tokens)),
        )

    def close(self) -> None:
        """Do nothing, as everything is in this process's memory."""


@torch.inference_mode()
def run_once(model: PreTrainedModel, prompt: Tensor, n_tokens: int) -> Run:
    """Prefill ``prompt`` [batch, context], then decode ``n_tokens`` tokens greedily.

    Only the logits of the last position are computed, as ``generate`` does.
    """
    device = prompt.device
    cache = DynamicCache(config=model.config)
    named = {cache_keyword(model): cache}
    token = prompt

    def step() -> None:
        nonlocal token
        logits = model(token, **named, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(dim=-1)

    def decode() -> None:
        for _ in range(n_tokens):
            step()

    with no_collection():
        prefill_seconds = seconds(device, step)
        decode_seconds = seconds(device, decode)
    kv_bytes = sum(keys.nbytes + values.nbytes for keys, values, _ in cache)
    return Run(prefill_seconds, decode_seconds / n_tokens, kv_bytes)


def cache_keyword(model: PreTrainedModel) -> str:
    """The name of the KV cache's argument in ``forward`` of this model, and so in ``generate``.

    transformers calls it ``cache`` from 5.24 on, and warns callers that use ``past_key_values``.
    """
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _prompt(model: PreTrainedModel, setting: Setting) -> Tensor:
    """Random tokens [batch, context], the same for every variant."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = model.config.get_text_config().vocab_size
    size = (setting.batch_size, setting.context)
    return torch.randint(vocabulary, size, generator=generator).to(model.device)


def _in_memory(setting: Setting, work: Callable[[], _Result]) -> _Result:
    try:
        return work()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        raise too_large(setting) from error
