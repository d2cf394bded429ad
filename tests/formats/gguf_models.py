"""Tiny models as GGUF files, and what transformers computes with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.formats import FORMATS, Options
from mqasearch.formats.converted import Converted
from mqasearch.formats.gguf_file import FILE_NAME
from mqasearch.mask import KVHeads
from mqasearch.merging import merge_of
from tests.models.checkpoints import tokenizer
from tests.tiny import HEAD_DIM, N_HEADS, VOCABULARY

KV_HEADS: KVHeads = (4, 2, 1)
GGUF = FORMATS["gguf"]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": N_HEADS * HEAD_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": len(KV_HEADS),
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": None,
}


def model_of(model_type: str, **config: Any) -> PreTrainedModel:
    """A random model of a type, with options of its config that ``tiny_model`` does not take."""
    read = AutoConfig.for_model(model_type, **{**_SIZES, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(read, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                mean = 1.0 if "norm" in name else 0.0
                torch.nn.init.normal_(parameter, mean=mean, std=0.2)
            else:
                torch.nn.init.normal_(parameter, std=0.25)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def rope(rope_type: str, **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **parameters}}


def converted_of(
    model: PreTrainedModel,
    kv_heads: KVHeads = KV_HEADS,
    used: PreTrainedTokenizerBase | None = None,
    source: Path | None = None,
) -> Converted:
    convertible = ConvertibleModel(model, family_of(model.config.model_type), merge_of("mean"))
    return Converted(convertible, kv_heads, used or tokenizer(), source)


def write(converted: Converted, folder: Path, outtype: str = "f32") -> Path:
    """Write the file, and check that as many bytes were written as were announced."""
    options = Options(outtype=outtype)
    assert GGUF.fault(converted) is None
    assert sum(GGUF.write(converted, folder, options)) == GGUF.n_bytes(converted, options)
    return folder / FILE_NAME


@dataclass(frozen=True)
class Expected:
    """What transformers computes on the stock shapes with the mask applied.

    Attributes:
        log_probs: log-probabilities of all tokens but the first [batch, length - 1].
        greedy: continuations [batch, n_tokens].
    """

    log_probs: Tensor
    greedy: list[list[int]]


def expected(converted: Converted, tokens: Tensor, n_tokens: int) -> Expected:
    with torch.no_grad(), converted.convertible.converted(converted.kv_heads) as model:
        log_probs = torch.log_softmax(model(tokens).logits[:, :-1], -1)
        greedy = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    of_tokens = log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    return Expected(of_tokens, greedy[:, tokens.shape[1] :].tolist())
