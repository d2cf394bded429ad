"""Groups of heads: the best ones, and heads moved without a trace."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mqasearch.merging.grouping import Group, best_groups, permute_kv_heads
from tests.conversion.calibrated import CLOSE, rewritten
from tests.tiny import GROUPED, MODEL_TYPES, N_HEADS, logits, tiny_model, tiny_tokens

seeds = st.integers(0, 2**31)
many = settings(max_examples=20, deadline=None, derandomize=True)


def spread(positions: torch.Tensor, group: Group) -> float:
    chosen = positions[list(group)]
    return float((chosen - chosen.mean(0)).square().sum())


@given(seed=seeds, sizes=st.sampled_from([(4, 2), (6, 2), (6, 3), (8, 2), (8, 4), (32, 8)]))
@many
def test_groups_are_equal_complete_and_never_worse_than_contiguous_ones(
    seed: int, sizes: tuple[int, int]
) -> None:
    n_heads, n_groups = sizes
    positions = torch.randn(n_heads, 3, generator=torch.Generator().manual_seed(seed))

    def total(groups: tuple[Group, ...]) -> float:
        return sum(spread(positions, group) for group in groups)

    groups = best_groups(n_heads, n_groups, lambda group: spread(positions, group))

    assert sorted(head for group in groups for head in group) == list(range(n_heads))
    assert {len(group) for group in groups} == {n_heads // n_groups}
    assert groups == tuple(sorted(tuple(sorted(group)) for group in groups))
    size = n_heads // n_groups
    contiguous = tuple(tuple(range(s, s + size)) for s in range(0, n_heads, size))
    assert total(groups) <= total(contiguous)
    if n_groups == 2:
        every = [set(chosen) for chosen in combinations(range(n_heads), size)]
        pairs = [(tuple(sorted(c)), tuple(sorted(set(range(n_heads)) - c))) for c in every]
        assert total(groups) == pytest.approx(min(map(total, pairs)))


@given(seed=seeds, sizes=st.sampled_from([(8, 2), (12, 3), (16, 4), (32, 4), (32, 8)]))
@many
def test_planted_groups_are_found(seed: int, sizes: tuple[int, int]) -> None:
    n_heads, n_groups = sizes
    generator = torch.Generator().manual_seed(seed)
    of_head = torch.randperm(n_heads, generator=generator) % n_groups
    centres = 10 * torch.eye(n_groups)
    positions = centres[of_head] + 0.1 * torch.randn(n_heads, n_groups, generator=generator)

    groups = best_groups(n_heads, n_groups, lambda group: spread(positions, group))

    assert all(len({int(of_head[head]) for head in group}) == 1 for group in groups)


def test_ties_keep_contiguous_groups() -> None:
    assert best_groups(4, 2, lambda _: 1.0) == ((0, 1), (2, 3))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(order=st.permutations(range(N_HEADS)))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_the_order_of_heads_is_free(model_type: str, order: list[int]) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)
    rewritten(model, lambda weights: permute_kv_heads(weights, order))
    torch.testing.assert_close(logits(model, tokens), before, **CLOSE)


@pytest.mark.parametrize("model_type", GROUPED)
def test_query_heads_follow_their_kv_head(model_type: str) -> None:
    model, tokens = tiny_model(model_type, n_kv_heads=2), tiny_tokens()
    before = logits(model, tokens)
    rewritten(model, lambda weights: permute_kv_heads(weights, [1, 0]))
    torch.testing.assert_close(logits(model, tokens), before, **CLOSE)


def test_the_order_that_is_there_costs_nothing() -> None:
    seen = []

    def check(weights):
        seen.append(permute_kv_heads(weights, range(N_HEADS)) is weights)
        return weights

    rewritten(tiny_model("llama"), check)
    assert seen == [True, True, True]
