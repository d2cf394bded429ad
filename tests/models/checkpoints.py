"""Tiny checkpoints, as they lie in folders, in GGUF files and in the hub's cache."""

import json
from pathlib import Path

import gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import VOCABULARY

LETTERS = [f"<{name}>" for name in ("unk", "s", "/s")] + [
    *sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 5],
    "Ġ",
    "ĠĠ",
]
"""A vocabulary of single bytes: three special tokens, digits, some letters, one space and two."""

MERGES = [("Ġ", "Ġ")]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a single merge."""
    vocabulary = {token: index for index, token in enumerate(LETTERS)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    """A model with its tokenizer, as transformers saves them."""
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def save_gguf(model: PreTrainedModel, path: Path, *, pre: str = "gpt-2") -> Path:
    """A Llama in llama.cpp's names and layout, float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(LETTERS)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (VOCABULARY - 3)
    )
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            n_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp turns neighbouring dimensions, transformers the two halves.
            halves = tensor.reshape(n_heads, 2, config.head_dim // 2, -1)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        stored = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(stored, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def put_in_hub_cache(folder: Path, cache: Path, repo: str) -> None:
    """Lay a checkpoint out as ``huggingface_hub`` does after a download."""
    commit = "c0ffee" + "0" * 34
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


def edit_config(folder: Path, **changes: object) -> None:
    """Overwrite keys of a saved config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
