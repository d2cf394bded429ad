"""Bayesian search on masks at the budget."""

import numpy as np
import pytest
from scipy.stats import wilcoxon
from selector_workers import Simulation, all_masks, pairwise_loss

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import MaskTrial, selector_of
from mqasearch.selectors.tpe import level_log_odds


def regret(name: str, seed: int, n_trials: int = 50) -> float:
    """How far the best of ``n_trials`` masks is from the optimum of 12 layers, 4 converted."""
    loss = pairwise_loss(12, seed)
    simulation = Simulation(lambda: selector_of(name, SearchSpace(12, 4), seed), loss).run(n_trials)
    return loss(simulation.best) - min(map(loss, all_masks(12, 4)))


@pytest.mark.long
def test_tpe_beats_as_many_random_masks() -> None:
    regrets = np.array([[regret(name, seed) for name in ("tpe", "random")] for seed in range(16)])
    assert regrets[:, 0].mean() < 0.6 * regrets[:, 1].mean()
    assert wilcoxon(regrets[:, 0], regrets[:, 1], alternative="less").pvalue < 0.01


def test_tpe_proposes_masks_at_the_budget_alone() -> None:
    simulation = Simulation(
        lambda: selector_of("tpe", SearchSpace(12, 4)), pairwise_loss(12, 0), n_workers=3
    ).run(60)
    assert {mask.n_converted for mask in simulation.masks} == {4}
    assert len(set(simulation.masks)) == 60


def test_tpe_starts_as_random_search_does() -> None:
    first = [
        Simulation(
            lambda name=name: selector_of(name, SearchSpace(12, 4), seed=5), pairwise_loss(12, 0)
        ).run(10)
        for name in ("tpe", "random")
    ]
    assert first[0].masks == first[1].masks


def test_log_odds_favour_the_layers_of_good_masks() -> None:
    masks = all_masks(6, 2)
    history = [
        MaskTrial(number, mask, "complete", float(sum(mask.layers)))
        for number, mask in enumerate(masks)
    ]
    odds = level_log_odds(history, SearchSpace(6, 2))[:, 0]
    assert odds[0] > 0 > odds[5]
    assert np.isfinite(odds).all()


def test_log_odds_are_even_without_a_mask_at_the_budget_and_finite_at_the_extremes() -> None:
    probe = MaskTrial(0, LayerMask.parse("1000"), "pruned", 1.0)
    assert not level_log_odds([probe], SearchSpace(4, 2)).any()
    full = [MaskTrial(0, LayerMask.parse("1111"), "complete", 1.0)]
    assert np.isfinite(level_log_odds(full, SearchSpace(4, 4))).all()
