"""Small random models of every family, of sizes that engines take."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mqasearch.models import LoadedModel, load_model, resolve

N_LAYERS, N_HEADS, HEAD_DIM, INTERMEDIATE = 4, 4, 64, 512
MAX_TOKENS = 512
_HIDDEN = N_HEADS * HEAD_DIM


def random_model(model_type: str, folder: Path) -> LoadedModel:
    """A random model with the tokenizer of SmolLM2, saved in ``folder`` and loaded from there.

    Every bias and norm is random too, so no comparison passes because a term happens to be zero.
    It never says a token that is not in ``whole_tokens``.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve("smollm2-135m").location)
    config = AutoConfig.for_model(model_type, **_sizes(model_type, len(tokenizer)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            mean = 1.0 if is_scale and not model_type.startswith("gemma") else 0.0
            spread = 0.2 if parameter.ndim == 1 else 0.06
            torch.nn.init.normal_(parameter, mean=mean, std=spread)
    model.get_output_embeddings().weight.data[_unwhole(tokenizer)] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu", dtype="float32")


def whole_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are plain text by themselves.

    Servers hold back a token that ends within a character, and stop at some special ones.
    """
    unwhole = {*_unwhole(tokenizer)}
    return [token for token in range(len(tokenizer)) if token not in unwhole]


def _unwhole(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [n for n, text in enumerate(texts) if n in special or "\ufffd" in text]


def _sizes(model_type: str, n_words: int) -> dict[str, Any]:
    words = {"vocab_size": n_words, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model_type == "gpt2":
        sizes = {"n_embd": _HIDDEN, "n_layer": N_LAYERS, "n_head": N_HEADS}
        return words | sizes | {"n_positions": MAX_TOKENS}
    sizes = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": MAX_TOKENS,
    }
    if model_type == "opt":
        return words | sizes | {"ffn_dim": INTERMEDIATE, "word_embed_proj_dim": _HIDDEN}
    sizes["intermediate_size"] = INTERMEDIATE
    if model_type == "gpt_neox":
        return words | sizes | {"rotary_pct": 0.5}
    sizes |= {"num_key_value_heads": N_HEADS}
    return words | sizes | _SPECIAL.get(model_type, {})


_SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": HEAD_DIM, "tie_word_embeddings": True},
    "gemma": {"head_dim": HEAD_DIM},
    "gemma2": {"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM},
}
