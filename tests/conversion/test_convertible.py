"""Laws of the live model: exact restoring, no memory of the order (merging.md, law 11)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import MaskError, ModelError
from mqasearch.families import AttentionWeights, family_of
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.merging import LayerStatistics, Merge, Statistics, merge_of
from tests.tiny import (
    GROUPED,
    HEAD_DIM,
    MODEL_TYPES,
    N_HEADS,
    logits,
    tiny_model,
    tiny_tokens,
)

N_LAYERS = 3
FULL = (N_HEADS,) * N_LAYERS
TOKENS = tiny_tokens()

kv_heads = st.tuples(*[st.sampled_from([1, 2, N_HEADS])] * N_LAYERS)
a_few = settings(max_examples=5, deadline=None, derandomize=True)


def convertible(model_type: str, merge: str = "mean", **sizes: int) -> ConvertibleModel:
    return ConvertibleModel(tiny_model(model_type, **sizes), family_of(model_type), merge_of(merge))


@pytest.mark.long
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(first=kv_heads, second=kv_heads)
@a_few
def test_the_result_depends_on_the_kv_heads_alone(
    model_type: str, first: KVHeads, second: KVHeads
) -> None:
    model = convertible(model_type)
    original = logits(model.model, TOKENS)
    fresh = convertible(model_type)
    fresh.apply(second)
    expected = logits(fresh.model, TOKENS)

    model.apply(first)
    model.apply(second)
    after_first = logits(model.model, TOKENS)
    model.apply(second)
    twice = logits(model.model, TOKENS)
    model.apply(FULL)

    assert torch.equal(after_first, expected)
    assert torch.equal(twice, expected)
    assert torch.equal(logits(model.model, TOKENS), original)
    assert torch.equal(expected, original) == (second == FULL)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_restoring_puts_the_very_same_parameters_back(model_type: str) -> None:
    model = convertible(model_type)
    before = dict(model.model.named_parameters())

    with model.converted((1, 2, 1)):
        inside = dict(model.model.named_parameters())

    after = dict(model.model.named_parameters())
    assert after.keys() == inside.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert any(inside[name] is not before[name] for name in before)
    assert {n: p.shape for n, p in inside.items()} == {n: p.shape for n, p in before.items()}


@pytest.mark.parametrize("model_type", GROUPED)
def test_sources_may_be_grouped_already(model_type: str) -> None:
    model = convertible(model_type, n_kv_heads=2)
    assert model.shape.n_kv_heads == 2
    with model.converted((1, 2, 1)):
        family = model.family
        for block, heads in zip(family.blocks(model.model), (1, 2, 1), strict=True):
            weights = family.read(family.attention(block))
            assert torch.equal(weights.k[0], weights.k[1]) == (heads == 1)
            assert torch.equal(weights.v[0], weights.v[1]) == (heads == 1)


def test_an_error_inside_the_block_restores_too() -> None:
    model = convertible("llama")
    model.apply((1, 4, 4))

    with pytest.raises(RuntimeError, match="scoring failed"), model.converted((4, 1, 1)):
        raise RuntimeError("scoring failed")

    assert model.kv_heads == (1, 4, 4)


def test_shape_is_that_of_the_original() -> None:
    assert convertible("gpt2").shape == ModelShape(
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        n_kv_heads=N_HEADS,
        head_dim=HEAD_DIM,
        hidden_size=N_HEADS * HEAD_DIM,
        bytes_per_element=4,
    )


class Counting(Merge):
    """``mean`` that counts its calls."""

    name = "counting"

    def __init__(self) -> None:
        self.calls: list[int] = []

    @property
    def digest(self) -> str:
        return self.name

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        self.calls.append(target)
        return merge_of("mean").merge(weights, target, statistics)


def test_every_replacement_is_computed_once() -> None:
    merge = Counting()
    model = ConvertibleModel(tiny_model("llama"), family_of("llama"), merge)
    assert merge.calls == []
    progress: list[tuple[int, int]] = []

    model.prepare(targets=(1, 2), progress=lambda done, total: progress.append((done, total)))
    for heads in [(1, 4, 4), (1, 1, 1), (2, 1, 2), (4, 4, 4), (1, 4, 4)]:
        model.apply(heads)

    assert sorted(merge.calls) == [1] * N_LAYERS + [2] * N_LAYERS
    assert progress == [(done, 6) for done in range(1, 7)]


def test_what_a_merge_leaves_alone_is_not_stored_twice() -> None:
    model = convertible("llama")
    attention = model.family.attention(model.family.blocks(model.model)[0])
    before = model.family.parameters(attention)
    model.apply((1, 4, 4))
    after = model.family.parameters(attention)
    assert after["q_proj.weight"] is before["q_proj.weight"]
    assert after["o_proj.weight"] is before["o_proj.weight"]
    assert after["k_proj.weight"] is not before["k_proj.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_models_dtype_is_kept(dtype: torch.dtype) -> None:
    model = ConvertibleModel(
        tiny_model("gpt_neox").to(dtype), family_of("gpt_neox"), merge_of("mean")
    )
    with model.converted((1, 1, 1)):
        assert {p.dtype for p in model.model.parameters()} == {dtype}
    assert model.shape.bytes_per_element == 2


def test_merged_weights_are_the_compact_ones() -> None:
    model = convertible("phi3")
    merged = model.merged(1, 2)
    assert merged.n_kv_heads == 2
    assert merged.n_heads == N_HEADS
    model.apply((4, 2, 4))
    applied = model.family.read(model.family.attention(model.family.blocks(model.model)[1]))
    assert torch.equal(merged.replicated(N_HEADS).k, applied.k.cpu())
    assert torch.equal(model.merged(1, N_HEADS).k, convertible("phi3").merged(1, N_HEADS).k)


@pytest.mark.parametrize("model_type", GROUPED)
def test_a_model_that_is_multi_query_already_is_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match=rf"{model_type} model is multi-query already"):
        convertible(model_type, n_kv_heads=1)


def test_nan_in_the_weights_is_refused_before_anything_is_scored() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].attn.c_attn.weight[0, 40] = torch.nan
    with pytest.raises(ModelError, match=r"^layer 2: the attention weight 'k' holds NaN"):
        ConvertibleModel(model, family_of("gpt2"), merge_of("mean"))


class Broken(Counting):
    name = "broken"

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        weights = super().merge(weights, target, statistics)
        return AttentionWeights(
            q=weights.q, k=weights.k / 0, v=weights.v, o=weights.o, rope=weights.rope
        )


def test_nan_from_a_merge_is_refused_and_changes_nothing() -> None:
    model = ConvertibleModel(tiny_model("llama"), family_of("llama"), Broken())
    before = logits(model.model, TOKENS)
    with pytest.raises(ModelError, match="layer 1 after merge 'broken'"):
        model.apply((4, 1, 1))
    assert model.kv_heads == FULL
    assert torch.equal(logits(model.model, TOKENS), before)


@pytest.mark.parametrize(
    ("heads", "message"),
    [((1, 1), "2 layers, the model 3"), ((1, 3, 1), "possible: 1, 2, 4"), ((0, 1, 1), "0 KV")],
)
def test_heads_that_do_not_fit_are_refused(heads: KVHeads, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        convertible("llama").apply(heads)


class Needy(Counting):
    name = "needy"
    needs_statistics = True
    reads_statistics = True


def statistics(n_layers: int) -> Statistics:
    size = N_HEADS * HEAD_DIM + 1
    layer = LayerStatistics(n_tokens=1, x_moment=torch.eye(size, dtype=torch.float64))
    return Statistics(layers=(layer,) * n_layers, digest="feed")


def test_statistics_are_asked_for_where_they_are_needed() -> None:
    model, family = tiny_model("llama"), family_of("llama")
    with pytest.raises(ValueError, match="needs calibration statistics"):
        ConvertibleModel(model, family, Needy())
    with pytest.raises(ValueError, match="statistics of 2 layers for 3"):
        ConvertibleModel(model, family, Needy(), statistics(2))
    assert ConvertibleModel(model, family, Needy(), statistics(3)).calibration == "feed"


def test_a_merge_that_reads_no_statistics_does_not_name_them_in_its_scores() -> None:
    model = ConvertibleModel(
        tiny_model("llama"), family_of("llama"), merge_of("mean"), statistics(3)
    )
    assert model.calibration == ""
    assert model.merge_name == "mean"
