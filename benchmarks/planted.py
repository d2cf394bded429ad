"""A model whose best KV heads are known, made from one with fewer KV heads.

Every KV head becomes several, one for each query head that reads it, each under a random map of its
own that changes nothing: a complex number for every pair of dimensions that RoPE turns, and an
invertible matrix for values; the query head and the output projection take up the inverse. Then the
heads are shuffled. The model computes what it computed before, up to rounding, and if it goes back
to the original number of KV heads, nothing is lost if heads are grouped and aligned rightly.

    python benchmarks/planted.py FOLDER                     SmolLM2-135M: 9 KV heads in place of 3
    mqasearch run FOLDER --kv-heads 1,3 --budget 1/3,2/9
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mqasearch.families import AttentionWeights, family_of
from mqasearch.models import LoadedModel, load_model


def main() -> None:
    """Parse the command line, plant, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    loaded = load_model(options.model, device="cpu", dtype="float32")
    before = loaded.shape.n_kv_heads
    n_kv_heads = plant(loaded, options.seed)
    loaded.model.save_pretrained(options.folder)
    loaded.tokenizer.save_pretrained(options.folder)
    print(f"{options.folder}: {n_kv_heads} KV heads in place of {before}")


def plant(loaded: LoadedModel, seed: int) -> int:
    """Give every query head of the model a KV head of its own; returns their number."""
    family = family_of(loaded.model.config.model_type)
    generator = torch.Generator().manual_seed(seed)
    n_heads = loaded.shape.n_heads
    for block in family.blocks(loaded.model):
        attention = family.attention(block)
        weights = planted(family.read(attention), generator)
        for projection, heads in ((attention.k_proj, weights.k), (attention.v_proj, weights.v)):
            projection.weight = torch.nn.Parameter(heads.flatten(0, 1))
            projection.out_features = len(projection.weight)
        attention.q_proj.weight = torch.nn.Parameter(weights.q.flatten(0, 1))
        attention.o_proj.weight = torch.nn.Parameter(weights.o.flatten(1, 2))
        attention.num_key_value_groups = 1
    loaded.model.config.num_key_value_heads = n_heads
    return n_heads


def planted(weights: AttentionWeights, generator: torch.Generator) -> AttentionWeights:
    """The same function with one KV head for each query head, in a random order.

    Raises:
        SystemExit: the layer has biases or a norm of queries and keys, or not all of its dimensions
            turn with the position: its maps are others.
    """
    has_bias = any(name.endswith("_bias") for name in weights.tensors())
    if has_bias or weights.has_qk_norm or weights.rope.rotary_dims != weights.head_dim:
        raise SystemExit("only layers without biases and norms, with RoPE in all dimensions")
    n_heads = weights.n_heads
    size = n_heads // weights.n_kv_heads
    q, o = weights.q.double(), weights.o.double()
    k, v = (each.double().repeat_interleave(size, dim=0) for each in (weights.k, weights.v))
    real, imaginary = (list(part) for part in zip(*weights.rope.pairs, strict=True))
    turn = torch.randn(n_heads, len(real), 1, dtype=torch.complex128, generator=generator)
    turn = turn / turn.abs() * (0.5 + torch.rand(turn.shape, generator=generator))
    q, k = q.clone(), k.clone()
    for heads, factor in ((k, turn), (q, 1 / turn.conj())):
        turned = torch.complex(heads[:, real], heads[:, imaginary]) * factor
        heads[:, real], heads[:, imaginary] = turned.real, turned.imag
    maps = _invertible(n_heads, v.shape[1], generator)
    v = maps @ v
    o = torch.einsum("Dhd,hde->Dhe", o, torch.linalg.inv(maps))
    order = torch.randperm(n_heads, generator=generator)
    parts = {"q": q[order], "k": k[order], "v": v[order], "o": o[:, order]}
    return replace(weights, **{name: part.to(weights.q.dtype) for name, part in parts.items()})


def _invertible(n: int, d: int, generator: torch.Generator) -> Tensor:
    """``[n, d, d]`` random matrices with singular values from 0.5 to 1.5."""
    left, right = (
        torch.linalg.qr(torch.randn(n, d, d, dtype=torch.float64, generator=generator))[0]
        for _ in range(2)
    )
    return left * (0.5 + torch.rand(n, 1, d, dtype=torch.float64, generator=generator)) @ right


if __name__ == "__main__":
    sys.exit(main())
