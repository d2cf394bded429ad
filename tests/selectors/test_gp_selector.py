"""Bayesian search with a model of layers and pairs of layers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import Simulation, all_masks, pairwise_loss

from mqasearch.search_space import SearchSpace
from mqasearch.selectors import selector_of
from mqasearch.selectors.interactions import InteractionModel

N_LAYERS = 9
laws = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
sizes = st.integers(2, N_LAYERS - 1)


def run(name: str, n_converted: int, seed: int, n_workers: int = 1, **parameters) -> Simulation:
    loss = pairwise_loss(N_LAYERS, seed, strength=0.3)
    return Simulation(
        lambda: selector_of(name, SearchSpace(N_LAYERS, n_converted), **parameters),
        loss,
        n_workers,
        seed,
    ).run()


@laws
@given(seeds, sizes)
def test_it_starts_from_the_sensitivity_ranking_and_never_ends_worse(seed: int, size: int) -> None:
    gp, ranking = run("gp", size, seed, n_masks=6), run("sensitivity", size, seed)
    assert gp.masks[N_LAYERS + 1] == ranking.best
    assert gp.loss(gp.best) <= ranking.loss(ranking.best)


@laws
@given(seeds, sizes, st.integers(1, 4))
def test_it_scores_what_it_was_granted(seed: int, size: int, n_workers: int) -> None:
    gp = run("gp", size, seed, n_workers, n_masks=5)
    assert len(gp.at_budget) == 5
    assert len(gp.masks) == 1 + N_LAYERS + 5


@pytest.mark.long
def test_it_finds_what_pairs_of_layers_hide_from_the_ranking() -> None:
    found = {"gp": 0, "sensitivity": 0}
    for seed in range(20):
        best = min(all_masks(N_LAYERS, 4), key=pairwise_loss(N_LAYERS, seed, strength=0.3))
        for name in found:
            found[name] += run(name, 4, seed).best == best
    assert found["gp"] >= 17 > found["sensitivity"] + 5


def test_layers_that_cannot_be_scored_are_soon_left_alone() -> None:
    broken = {0, 3}
    masks = [mask for size in range(4) for mask in all_masks(N_LAYERS, size)]
    invalid = [mask for mask in masks if broken & set(mask.layers)]
    gp = Simulation(
        lambda: selector_of("gp", SearchSpace(N_LAYERS, 3), n_masks=8),
        pairwise_loss(N_LAYERS, 4),
        invalid=invalid,
    ).run()
    assert len(gp.at_budget) == 8
    assert len(gp.masks) <= 1 + N_LAYERS + 8 + 3


N_LEVELS = 3


def _model(rng: np.random.Generator, n_masks: int = 15) -> tuple[InteractionModel, np.ndarray]:
    levels = np.unique(rng.integers(0, N_LEVELS + 1, size=(n_masks, 6)), axis=0)
    levels = levels[levels.any(axis=1)]
    scales = rng.lognormal(size=(6, N_LEVELS))
    return InteractionModel(levels, rng.normal(size=len(levels)), scales), levels


@laws
@given(seeds)
def test_the_kernel_is_that_of_levels_and_pairs_listed_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, levels = _model(rng)
    scales = model.roots**2
    has_level = [(levels == level) * scales[:, level] for level in range(1, N_LEVELS + 1)]
    harms = sum(has_level)
    first, second = np.triu_indices(6, 1)
    pairs = np.sqrt(harms[:, first] * harms[:, second])
    common = pairs.sum(axis=1)
    listed = (
        sum(each @ each.T for each in has_level)
        + model.pair_share * pairs @ pairs.T
        + 0.25 * np.outer(common, common)
    )
    np.testing.assert_allclose(model.kernel(levels), listed, rtol=1e-9, atol=1e-9)


@laws
@given(seeds)
def test_the_quadratic_function_is_the_expectation_of_the_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, _ = _model(rng)
    others = rng.integers(0, N_LEVELS + 1, size=(20, 6))
    expected = model.kernel(others) @ model._weights
    np.testing.assert_allclose(model.mean(others), expected, rtol=1e-9, atol=1e-9)


@laws
@given(seeds)
def test_it_remembers_up_to_its_noise_and_is_unsure_elsewhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = rng.lognormal(size=6)
    pairs = np.triu(rng.normal(size=(6, 6)), 1) * 0.3 * np.sqrt(np.outer(scales, scales))
    flags = np.vstack([np.eye(6, dtype=int), 1 - np.eye(6, dtype=int)])
    excess = flags @ scales + np.einsum("ni,ij,nj->n", flags, pairs, flags)
    model = InteractionModel(flags, excess, scales[:, None])
    typical = float(np.sqrt(np.mean(scales**2)))
    np.testing.assert_allclose(model.mean(flags), excess, atol=0.3 * typical)
    unseen = np.array([[1, 1, 1, 0, 0, 0]])
    assert model.deviation(unseen)[0] > model.deviation(flags).max()
    assert (model.deviation(flags) > 0).all()
