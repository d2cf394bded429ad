"""A checkpoint with the shape of a known model and random weights, for measuring what it costs.

    python benchmarks/random_checkpoint.py llama-3.2-1b FOLDER
    python benchmarks/scoring.py --model FOLDER --device cuda --only cold

The time and the memory that a score takes depend on the shape alone. The tokenizer is SmolLM2's; it
has fewer tokens than the model has rows for.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mqasearch.models import load_model

SHAPES = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""Name → config, according to the model's published config.json."""


def write(shape: str, folder: Path, device: str, tokenizer: Path | None) -> None:
    """Draw the weights and save them in bfloat16, with a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, bos_token_id=1)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    if tokenizer is None:
        words = load_model("smollm2-135m", device="cpu").tokenizer
    else:
        words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(folder)


def main() -> None:
    """Parse the command line, write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", help="that draws the weights")
    parser.add_argument("--tokenizer", type=Path, help="folder of another tokenizer")
    arguments = parser.parse_args()
    write(arguments.shape, arguments.folder, arguments.device, arguments.tokenizer)


if __name__ == "__main__":
    main()
