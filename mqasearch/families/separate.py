"""Families that keep the query, key, value and output projections in four linear modules."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from mqasearch.families.family import Family
from mqasearch.families.weights import NO_ROPE, AttentionWeights, RopeLayout


class SeparateFamily(Family):
    """Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma-2, OPT.

    A ``weight`` is [out, in] with the heads one after the other in ``out`` (``in`` for the output
    projection). The layout allows any number of KV heads that divides the number of query heads.

    Attributes:
        output: name of the output projection.
        rope: ``half`` over the whole head, or ``none`` (OPT's positions are added to its input).
        has_qk_norm: whether a norm acts on q and k (Qwen3).
    """

    def __init__(
        self,
        model_types: Sequence[str],
        *,
        blocks_path: str = "layers",
        output: str = "o_proj",
        rope: Literal["none", "half"] = "half",
        has_qk_norm: bool = False,
    ) -> None:
        super().__init__(
            model_types,
            blocks_path=blocks_path,
            attention_path="self_attn",
            projections=("q_proj", "k_proj", "v_proj", output),
        )
        self.output = output
        self.rope = rope
        self.has_qk_norm = has_qk_norm

    def unpack(self, attention: nn.Module, parameters: Mapping[str, Tensor]) -> AttentionWeights:
        head_dim: int = attention.head_dim  # type: ignore[assignment]

        def heads(projection: str) -> Tensor:
            weight = parameters[f"{projection}.weight"]
            return weight.view(-1, head_dim, weight.shape[1])

        def bias(projection: str) -> Tensor | None:
            found = parameters.get(f"{projection}.bias")
            return None if found is None else found.view(-1, head_dim)

        output = parameters[f"{self.output}.weight"]
        return AttentionWeights(
            q=heads("q_proj"),
            k=heads("k_proj"),
            v=heads("v_proj"),
            o=output.view(output.shape[0], -1, head_dim),
            q_bias=bias("q_proj"),
            k_bias=bias("k_proj"),
            v_bias=bias("v_proj"),
            o_bias=parameters.get(f"{self.output}.bias"),
            rope=NO_ROPE if self.rope == "none" else RopeLayout(self.rope, head_dim),
            has_qk_norm=self.has_qk_norm,
        )

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        packed = {
            "q_proj.weight": weights.q.flatten(0, 1),
            "k_proj.weight": weights.k.flatten(0, 1),
            "v_proj.weight": weights.v.flatten(0, 1),
            f"{self.output}.weight": weights.o.flatten(1, 2),
        }
        biases = {
            "q_proj.bias": weights.q_bias,
            "k_proj.bias": weights.k_bias,
            "v_proj.bias": weights.v_bias,
            f"{self.output}.bias": weights.o_bias,
        }
        return packed | {name: b.flatten() for name, b in biases.items() if b is not None}
