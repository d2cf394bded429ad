"""Laws of ``aligned`` (merging.md, laws 1, 2, 4, 5, 6, 7)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, RopeLayout, family_of
from mqasearch.merging.aligned import Aligned, Alignment
from mqasearch.merging.aligned_keys import NormedKeys, RotaryKeys, hermitian, pair_energy
from mqasearch.merging.aligned_subspace import Subspace
from mqasearch.merging.layer_statistics import LayerStatistics
from mqasearch.merging.merges import merge_of
from tests.conversion.calibrated import (
    CLOSE,
    convertible_of,
    free_key_maps,
    images_of,
    model_of_images,
    random,
    rewritten,
    statistics_of,
    texts,
)
from tests.tiny import MODEL_TYPES, N_HEADS, logits, tiny_model, tiny_tokens

ALIGNED = merge_of("aligned", refit=False)
WITH_ROPE = [name for name in MODEL_TYPES if name not in ("gpt2", "opt")]
ROPE = RopeLayout("half", 8)
HEADS, DIMS = 4, 8

seeds = st.integers(0, 2**31)
a_few = settings(max_examples=4, deadline=None, derandomize=True)
many = settings(max_examples=25, deadline=None, derandomize=True)


def turn_keys(weights: AttentionWeights, maps: Tensor) -> AttentionWeights:
    """k_s → P_s⁻¹ k_s, q_h → P_s(h)ᵀ q_h."""
    inverse = torch.linalg.inv(maps)
    up = maps.repeat_interleave(weights.n_heads // weights.n_kv_heads, dim=0).transpose(1, 2)

    def turned(turn: Tensor, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else (turn @ bias[..., None])[..., 0]

    return replace(
        weights,
        q=up @ weights.q,
        k=inverse @ weights.k,
        q_bias=turned(up, weights.q_bias),
        k_bias=turned(inverse, weights.k_bias),
    )


@pytest.mark.long
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(seed=seeds)
@a_few
def test_law_1_one_complex_number_per_pair_is_free(model_type: str, seed: int) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)
    rewritten(model, lambda weights: turn_keys(weights, free_key_maps(weights, seed)))
    torch.testing.assert_close(logits(model, tokens), before, **CLOSE)


@pytest.mark.parametrize("model_type", WITH_ROPE)
def test_law_2_a_reflection_is_not(model_type: str) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)

    def reflect(weights: AttentionWeights) -> AttentionWeights:
        mirror = torch.eye(weights.head_dim)
        for _, imaginary in weights.rope.pairs:
            mirror[imaginary, imaginary] = -1
        return turn_keys(weights, mirror.expand(N_HEADS, -1, -1))

    rewritten(model, reflect)
    assert (logits(model, tokens) - before).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_law_4_images_of_one_head_merge_without_loss(model_type: str) -> None:
    """Biases and all (law 7): in the families that have them they are images too."""
    model, tokens = model_of_images(model_type, [0, 0, 0, 0]), tiny_tokens(seed=5)
    original = logits(model, tokens)

    with convertible_of(model, ALIGNED).converted((1, 1, 1)):
        aligned = logits(model, tokens)
    with convertible_of(model, merge_of("mean")).converted((1, 1, 1)):
        mean = logits(model, tokens)

    torch.testing.assert_close(aligned, original, **CLOSE)
    assert (mean - original).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_two_kinds_of_heads_are_told_apart_wherever_they_stand(model_type: str) -> None:
    model, tokens = model_of_images(model_type, [0, 1, 0, 1]), tiny_tokens(seed=5)
    original = logits(model, tokens)
    with convertible_of(model, ALIGNED).converted((2, 2, 2)):
        torch.testing.assert_close(logits(model, tokens), original, **CLOSE)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "gpt2"])
def test_the_residual_says_what_is_lost(model_type: str) -> None:
    family, merge = family_of(model_type), Aligned(refit=False)
    residuals = []
    for model in (model_of_images(model_type, [0, 0, 0, 0]), tiny_model(model_type)):
        weights = family.read(family.attention(family.blocks(model)[1])).to(device="cpu")
        layer = statistics_of(model, merge).layers[1]
        residuals.append(merge.residual(weights, 1, layer))
        assert merge.residual(weights, 2, layer) <= residuals[-1] + 1e-12
    assert residuals[0] < 1e-6 < 0.05 < residuals[1] <= 2


def gram_of(seed: int, heads: int = HEADS, dims: int = DIMS) -> Tensor:
    """[n, d, n, d] second moment of random states; rank and scale vary with the seed."""
    rank = 1 + seed % (2 * heads * dims)
    rows = random(seed, heads * dims, rank).double() * 10 ** (seed % 5 - 2)
    return (rows @ rows.T).reshape(heads, dims, heads, dims)


def costs_of(seed: int, heads: int = HEADS, dims: int = DIMS) -> Tensor:
    rows = random(seed + 7, heads, dims, 2 * dims).double()
    return rows @ rows.transpose(1, 2)


@given(seed=seeds)
@many
def test_law_5_aligned_errs_no_more_than_procrustes_and_that_no_more_than_the_mean(
    seed: int,
) -> None:
    gram, cost = gram_of(seed), costs_of(seed)
    pairs = hermitian(gram, ROPE)
    energy = pair_energy(cost, ROPE) / 2

    def error(turn: Tensor) -> float:
        """Σ ω_s E|k̂_s − c_s k̂'|² with the best k̂' for these c [pairs, heads]."""
        own = torch.einsum("ps,pss->p", energy.to(pairs.dtype), pairs).real
        weighted = energy * turn.conj()
        kept = torch.einsum("ps,pst,pt->p", weighted, pairs, weighted.conj()).real
        return float((own - kept / (energy * turn.abs() ** 2).sum(-1)).sum())

    turn = torch.ones(len(ROPE.pairs), HEADS, dtype=torch.complex128)
    mean = error(turn)
    for _ in range(20):  # alternate between the merged key and the phases: never goes up
        crossed = torch.einsum("pst,pt->ps", pairs, energy * turn)
        turn = crossed / crossed.abs().clamp_min(1e-300)
        turn = torch.where(turn.abs() > 0.5, turn, 1.0)
    slack = 1e-9 * max(mean, 1e-9)
    procrustes = error(turn)
    aligned = RotaryKeys(gram, cost, ROPE).residual(range(HEADS))
    assert aligned <= procrustes + slack
    assert procrustes <= mean + slack


@given(seed=seeds)
@many
def test_the_maps_have_the_error_that_they_claim(seed: int) -> None:
    """down and up, put into the objective themselves; no other maps do better."""
    gram, cost = gram_of(seed), costs_of(seed)
    rotary, subspace = RotaryKeys(gram, cost, ROPE), Subspace(gram, cost)
    turning = torch.zeros_like(cost)
    for dim, energy in enumerate((pair_energy(cost, ROPE) / 2).repeat(2, 1)):
        turning[:, dim, dim] = energy
    for solver, weight in ((rotary, turning), (subspace, cost)):
        maps = rotary.maps(range(HEADS), DIMS) if solver is rotary else subspace.maps(range(HEADS))
        merged = torch.einsum("sab,sbtc->atc", maps.down, gram)  # E[z' z_tᵀ]
        energy = torch.einsum("atc,tbc->ab", merged, maps.down)  # E[z' z'ᵀ]
        own = torch.einsum("sab,sbsa->", weight, gram)
        crossed = torch.einsum("sab,sbc,csa->", weight, maps.up, merged)
        squared = torch.einsum("sab,sbc,cd,sad->", weight, maps.up, energy, maps.up)
        error = float(own - 2 * crossed + squared)
        assert abs(error - solver.residual(range(HEADS))) <= 2e-3 * float(own)
        mean_energy = torch.einsum("sasa->", gram) / HEADS
        torch.testing.assert_close(energy.trace(), mean_energy, rtol=1e-6, atol=1e-9)


@given(seed=seeds)
@many
def test_with_a_norm_the_choice_errs_no_more_than_the_mean_or_any_head(seed: int) -> None:
    keys = NormedKeys(gram_of(seed), costs_of(seed), ROPE)
    ones = torch.ones(len(ROPE.pairs), HEADS, dtype=torch.float64)
    heads = range(HEADS)
    mean = keys._error(keys._gram, heads, ones * keys._size, ones)
    alone = [keys._error(keys._gram, heads, torch.eye(HEADS)[h] * ones, ones) for h in heads]
    assert keys.residual(heads) <= min(mean, *alone) * (1 + 1e-9)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_law_6_a_constant_in_the_key_bias_changes_nothing(model_type: str) -> None:
    tokens, merged = tiny_tokens(), []
    for shift in (0.0, 3.0):
        model = rewritten(
            tiny_model(model_type),
            lambda w, shift=shift: replace(w, k_bias=w.k_bias + shift * random(1, N_HEADS, DIMS)),
        )
        with convertible_of(model, ALIGNED).converted((1, 2, 1)):
            merged.append(logits(model, tokens))
    torch.testing.assert_close(merged[0], merged[1], **CLOSE)


@pytest.mark.parametrize("model_type", ["opt", "gpt_neox", "gpt2"])
def test_an_output_bias_takes_up_what_the_mean_value_lost(model_type: str) -> None:
    """Attention that looks everywhere alike: the mean output stays that of the original."""
    model, family = tiny_model(model_type), family_of(model_type)
    weights = family.read(family.attention(family.blocks(model)[0]))
    original = weights.to(torch.float64, "cpu")
    layer = statistics_of(model, ALIGNED).layers[0]
    mean = layer.moment(ALIGNED.first_token)[-1, :-1]

    def output(weights: AttentionWeights) -> Tensor:
        values = weights.v @ mean + (0 if weights.v_bias is None else weights.v_bias)
        of_query = values.repeat_interleave(weights.n_heads // weights.n_kv_heads, dim=0)
        return torch.einsum("Dha,ha->D", weights.o, of_query) + weights.o_bias

    torch.testing.assert_close(output(ALIGNED.merge(original, 1, layer)), output(original))


@given(seed=seeds)
@a_few
def test_the_interleaved_layout_is_the_half_layout_in_another_order(seed: int) -> None:
    order = torch.arange(DIMS).view(2, -1).T.flatten()  # half-split dimension of each interleaved
    half = AttentionWeights(
        q=random(seed, 2 * HEADS, DIMS, 16),
        k=random(seed + 1, HEADS, DIMS, 16),
        v=random(seed + 2, HEADS, DIMS, 16),
        o=random(seed + 3, 16, 2 * HEADS, DIMS),
        rope=ROPE,
    )
    interleaved = replace(
        half, q=half.q[:, order], k=half.k[:, order], rope=RopeLayout("interleaved", DIMS)
    )
    rows = random(seed + 4, 40, 17).double()
    layer = LayerStatistics(40, rows.T @ rows / 40)

    one, other = (ALIGNED.merge(weights, 2, layer) for weights in (half, interleaved))

    torch.testing.assert_close(one.k[:, order], other.k)
    torch.testing.assert_close(one.q[:, order], other.q)


def test_heads_that_say_nothing_are_merged_all_the_same() -> None:
    model = rewritten(
        tiny_model("llama"),
        lambda w: replace(w, q=w.q * 0, k=w.k * 0, v=w.v * 0, o=w.o * 0),
    )
    before = logits(model, tiny_tokens())
    with convertible_of(model, ALIGNED).converted((1, 1, 1)):
        torch.testing.assert_close(logits(model, tiny_tokens()), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_hold_the_merged_weights(dtype: torch.dtype) -> None:
    """Scales are those of the original, so that neither half of a product overflows."""
    model = tiny_model("gpt_neox").to(dtype)
    convertible = convertible_of(model, ALIGNED)
    for layer in range(3):
        original, merged = convertible.original(layer), convertible.merged(layer, 1)
        for name, tensor in merged.tensors().items():
            assert tensor.dtype == dtype
            if not name.endswith("bias"):
                ratio = tensor.float().norm() / original.tensors()[name].float().norm()
                assert 0.1 < ratio < 10, name


def test_the_first_token_counts_as_often_as_it_is_told_to() -> None:
    """Counting it once is to leave nothing out."""
    model = tiny_model("llama")
    layer = statistics_of(model, ALIGNED).layers[0]
    assert layer.first_moment is not None
    n_texts = len(texts())
    assert layer.n_first == n_texts
    everything = (layer.n_tokens * layer.x_moment + n_texts * layer.first_moment) / sum(
        map(len, texts())
    )
    torch.testing.assert_close(layer.moment(1.0), everything)
    assert layer.moment(0.0) is layer.x_moment


def test_groups_may_be_asked_for_their_error() -> None:
    weights = images_of(
        family_of("llama")
        .read(family_of("llama").attention(family_of("llama").blocks(tiny_model("llama"))[0]))
        .to(device="cpu"),
        [0, 1, 1, 0],
        seed=4,
    ).to(dtype=torch.float64)
    alignment = Alignment(weights, torch.eye(33, dtype=torch.float64))
    assert alignment.groups(2) == ((0, 3), (1, 2))
    assert alignment.error((0, 3)) < 1e-6 < alignment.error((0, 1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"refit": "no"}, "refit of merge 'aligned': expected true or false, got 'no'"),
        ({"first_token": "all"}, "first_token of merge 'aligned': expected a finite number"),
        ({"first_token": -1}, "first_token must be 0 or more"),
        ({"first_token": float("nan")}, "expected a finite number, got nan"),
    ],
)
def test_parameters_of_another_kind_are_refused(
    parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        merge_of("aligned", **parameters)


def test_what_is_off_by_default_is_not_named() -> None:
    assert merge_of("mean").digest == "mean"
    assert merge_of("mean", refit=True).digest == "mean(refit=True)"
    assert merge_of("aligned").digest == "aligned(first_token=64.0, refit=True)"
    assert merge_of("aligned", refit=False).digest == "aligned(first_token=64.0, refit=False)"
