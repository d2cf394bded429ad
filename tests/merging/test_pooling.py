"""What ``first``, ``best`` and ``mean`` promise, on random layers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mqasearch.errors import UnknownNameError
from mqasearch.families import NO_ROPE, AttentionWeights, RopeLayout
from mqasearch.merging.merges import MERGES, merge_of
from mqasearch.merging.pooling import replacement_errors

N_QUERY, N_KV, DIM, HIDDEN = 8, 4, 4, 12

seeds = st.integers(0, 2**31)
targets = st.sampled_from([1, 2])
ropes = st.sampled_from([NO_ROPE, RopeLayout("half", 4), RopeLayout("interleaved", 2)])
many = settings(max_examples=30, deadline=None, derandomize=True)


def layer(seed: int, rope: RopeLayout = NO_ROPE) -> AttentionWeights:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return AttentionWeights(
        q=random(N_QUERY, DIM, HIDDEN),
        k=random(N_KV, DIM, HIDDEN),
        v=random(N_KV, DIM, HIDDEN),
        o=random(HIDDEN, N_QUERY, DIM),
        q_bias=random(N_QUERY, DIM),
        k_bias=random(N_KV, DIM),
        v_bias=random(N_KV, DIM),
        o_bias=random(HIDDEN),
        rope=rope,
    )


def moment_of(x: Tensor) -> Tensor:
    """Second moment of (x, 1) over the tokens of x [tokens, D]."""
    augmented = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    return augmented.T @ augmented / len(x)


@pytest.mark.parametrize("name", ["mean", "first", "best"])
@given(seed=seeds, target=targets)
@many
def test_equal_heads_merge_into_that_head(name: str, seed: int, target: int) -> None:
    one = layer(seed)
    same = {n: t[:1].expand_as(t) for n, t in one.tensors().items() if n[0] in "kv"}
    equal = replace(one, **same)

    merged = merge_of(name).merge(equal, target, None)

    assert merged.n_kv_heads == target
    for tensor_name, tensor in merged.replicated(N_KV).tensors().items():
        torch.testing.assert_close(tensor.float(), equal.tensors()[tensor_name])


@pytest.mark.parametrize("name", ["mean", "first", "best"])
@given(seed=seeds, target=targets)
@many
def test_queries_and_output_are_returned_as_they_came(name: str, seed: int, target: int) -> None:
    weights = layer(seed)
    merged = merge_of(name).merge(weights, target, None)
    assert merged.q is weights.q
    assert merged.o is weights.o
    assert merged.q_bias is weights.q_bias
    assert merged.o_bias is weights.o_bias


@given(seed=seeds, target=targets)
@many
def test_first_keeps_the_first_head_of_each_group(seed: int, target: int) -> None:
    weights = layer(seed)
    merged = merge_of("first").merge(weights, target, None)
    for group in range(target):
        assert torch.equal(merged.k[group], weights.k[group * N_KV // target])
        assert torch.equal(merged.v[group], weights.v[group * N_KV // target])


@given(seed=seeds, target=targets, rope=ropes)
@many
def test_best_is_never_worse_than_first(seed: int, target: int, rope: RopeLayout) -> None:
    weights = layer(seed, rope)
    errors = replacement_errors(weights, None)
    size = N_KV // target

    merged = merge_of("best").merge(weights, target, None)

    for group in range(target):
        block = errors[group * size : (group + 1) * size, group * size : (group + 1) * size]
        chosen = [torch.equal(merged.k[group], weights.k[group * size + j]) for j in range(size)]
        assert block.sum(dim=0)[chosen.index(True)] == block.sum(dim=0).min()
        assert block.sum(dim=0).min() <= block.sum(dim=0)[0]


@given(seed=seeds, rope=ropes)
@many
def test_a_head_stands_in_for_itself_without_error(seed: int, rope: RopeLayout) -> None:
    errors = replacement_errors(layer(seed, rope), None)
    assert errors.shape == (N_KV, N_KV)
    assert errors.diagonal().abs().max() < 1e-12
    off_diagonal = errors[~torch.eye(N_KV, dtype=torch.bool)]
    assert bool((off_diagonal > 0).all())


@given(seed=seeds)
@many
def test_the_error_is_the_one_on_the_states_of_the_calibration_tokens(seed: int) -> None:
    """Without RoPE: E (q_hᵀ Δk)² of centred keys and E |Σ W_O Δv|², computed from states."""
    weights = layer(seed)
    x = torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(seed + 1)) + 0.5
    q = (torch.einsum("hdD,tD->htd", weights.q, x) + weights.q_bias[:, None]).double()
    k = (torch.einsum("hdD,tD->htd", weights.k, x) + weights.k_bias[:, None]).double()
    v = (torch.einsum("hdD,tD->htd", weights.v, x) + weights.v_bias[:, None]).double()
    k = k - k.mean(dim=1, keepdim=True)

    def key_error(s: int, delta: Tensor) -> Tensor:
        own = q[2 * s : 2 * s + 2]
        return torch.einsum("htd,ud->htu", own, delta).square().mean(dim=(1, 2)).sum()

    def value_error(s: int, delta: Tensor) -> Tensor:
        out = torch.einsum("Dhd,td->htD", weights.o[:, 2 * s : 2 * s + 2].double(), delta)
        return out.square().sum(dim=-1).mean(dim=1).sum()

    keys = sum(key_error(s, k[s]) for s in range(N_KV))
    values = sum(value_error(s, v[s]) for s in range(N_KV))
    expected = torch.stack(
        [
            torch.stack(
                [
                    key_error(s, k[s] - k[j]) / keys + value_error(s, v[s] - v[j]) / values
                    for j in range(N_KV)
                ]
            )
            for s in range(N_KV)
        ]
    )

    torch.testing.assert_close(replacement_errors(weights, moment_of(x)), expected)


@given(seed=seeds)
@many
def test_a_constant_in_the_key_bias_decides_nothing_without_rope(seed: int) -> None:
    weights = layer(seed)
    assert weights.k_bias is not None
    shifted = replace(weights, k_bias=weights.k_bias + 7 * torch.arange(N_KV)[:, None])
    turning = replace(weights, rope=RopeLayout("half", 4))
    turning_shifted = replace(shifted, rope=RopeLayout("half", 4))

    torch.testing.assert_close(replacement_errors(shifted, None), replacement_errors(weights, None))
    difference = replacement_errors(turning_shifted, None) - replacement_errors(turning, None)
    assert difference.abs().max() > 1e-3


def test_heads_that_agree_on_the_data_stand_in_for_one_another_whatever_the_rest() -> None:
    weights = layer(3, RopeLayout("half", 4))
    k, v = weights.k.clone(), weights.v.clone()
    k[1, :, 0], v[1, :, 0] = k[0, :, 0], v[0, :, 0]
    agreeing = replace(weights, k=k, v=v, k_bias=None, v_bias=None)
    only_input_0 = torch.zeros(10, HIDDEN)
    only_input_0[:, 0] = 1

    on_data = replacement_errors(agreeing, moment_of(only_input_0))
    on_weights = replacement_errors(agreeing, None)

    assert on_data[0, 1] < 1e-12 < on_data[0, 2]
    assert on_weights[0, 1] > 0.1


def test_every_merge_says_what_it_does_in_one_line() -> None:
    for name, kind in MERGES.items():
        assert kind.name == name
        assert (kind.__doc__ or "").strip().splitlines()[0].endswith(".")
        assert not kind.needs_statistics or kind.reads_statistics


def test_an_unknown_merge_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        merge_of("maen")


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown parameter of merge 'mean': 'alpha'"):
        merge_of("mean", alpha=1)
