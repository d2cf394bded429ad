"""Bayesian search with a model of single layers and pairs of layers."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.interactions import Floats, InteractionModel, Levels
from mqasearch.selectors.knapsack import cheapest
from mqasearch.selectors.selector import Selector, Wants
from mqasearch.selectors.switches import best_neighbours

_N_LEARNED = 400
_N_LIKELY = 200
_N_INCUMBENTS = 3
_MAX_SWITCHES = 20
_TINY = 1e-12


class GPSelector(Selector):
    """Each layer alone, then the masks with the largest expected improvement.

    The model (:class:`InteractionModel`) starts as the sensitivity ranking, so the ranking's mask
    at the budget is proposed first. From every further mask it learns which layers suit each other.
    Candidates are the model's own optimum, found by greedy selection and switches, and every mask
    that is one switch away from it or from the best masks so far; with several levels, also every
    change of one layer that others make up for. The candidate with the largest
    expected improvement (Jones et al. 1998) is proposed. A running mask counts with the loss
    expected of it (the "kriging believer"), which spreads workers out. Levels of layers that have
    no score alone are left out of every further mask.

    Args:
        space: the masks that may be proposed, and the budget.
        seed: used once every promising mask has been seen.
        n_masks: masks at the budget to score after the layers alone, ≥ 1; the plan ends there.

    Raises:
        UserError: ``n_masks`` below 1.
    """

    name: ClassVar[str] = "gp"
    summary: ClassVar[str] = "Bayesian search: layers alone, then a Gaussian process on pairs"
    ends: ClassVar[bool] = True
    counted: ClassVar[str | None] = "n_masks"

    def __init__(self, space: SearchSpace, seed: int = 0, *, n_masks: int = 20) -> None:
        super().__init__(space, seed)
        if n_masks < 1:
            raise UserError(f"n_masks {n_masks} is too few; choose 1 or more")
        self.n_masks = n_masks

    def wants(self, history: History) -> Wants:
        """The next layer alone, else the most promising candidate, until enough are scored."""
        at_budget = [trial for trial in history if self.space.is_at_budget(trial.mask)]
        if not self._are_all_alone:  # some layers alone may be at the budget too
            at_budget = [trial for trial in at_budget if trial.mask.n_converted > 1]
        n_finished = sum(trial.state in ("complete", "pruned") for trial in at_budget)
        n_running = sum(not trial.finished for trial in at_budget)
        if n_finished >= self._goal:
            return Wants(done=True)
        if n_finished + n_running >= self._goal:
            return Wants()
        return self.none_left(history) or Wants((self._next(history),))

    def spare(self, history: History) -> LayerMask:
        """The mask that would come next if more masks were to be scored."""
        return self._next(history)

    @property
    def _goal(self) -> int:
        """Masks at the budget to score; if every layer alone is at the budget, these are all."""
        return self._n_alone if self._are_all_alone else self.n_masks

    @property
    def _n_alone(self) -> int:
        return self.n_layers * self.space.deepest

    @property
    def _are_all_alone(self) -> bool:
        """Whether the masks of one layer are those at the budget."""
        return self.space.deepest == 1 and self.space.least <= self.space.savings[0]

    def expected_trials(self) -> int:
        """One for the original, one for each level of each layer, and the masks at the budget."""
        return 1 + self._n_alone + self.n_masks

    def least_trials(self) -> int:
        """One for the original, one for each layer alone, and the first mask at the budget.

        A layer alone may be the first mask at the budget.
        """
        alone = enumerate(self.space.alone())
        at_budget = (number for number, mask in alone if self.space.is_at_budget(mask))
        return 2 + next(at_budget, self._n_alone)

    def _next(self, history: History) -> LayerMask:
        for mask in (LayerMask.empty(self.n_layers), *self.space.alone()):
            if mask not in history.taken:
                return mask
        row = self._most_promising(history)
        if row is None:
            return self.random_mask(history, self.generator(history))
        return _mask(row)

    def _most_promising(self, history: History) -> Levels | None:
        """The unseen candidate with the largest expected improvement, as ``[n_layers]`` levels."""
        original = LayerMask.empty(self.n_layers)
        finished = self._instructive([t for t in history if t.finished and t.mask != original])
        if not finished:
            return None
        # The worst masks teach least, and the cost grows with the cube of their number.
        finished.sort(key=lambda trial: (trial.mask.n_converted > 1, trial.loss))
        finished = finished[:_N_LEARNED]
        levels, losses = self._levels(finished), _finite([trial.loss for trial in finished])
        base = next((t.loss for t in history if t.mask == original), math.nan)
        excess = losses - (base if math.isfinite(base) else losses.min())
        model = self._model(levels, excess, self._levels([t for t in history if not t.finished]))
        at_budget = np.array([self.space.is_at_budget(trial.mask) for trial in finished])
        incumbents = levels[at_budget][np.argsort(excess[at_budget], kind="stable")]
        rows = self._candidates(model, incumbents[:_N_INCUMBENTS], history)
        if not len(rows):
            return None
        if not len(incumbents):
            wanted = -model.mean(rows)
        else:
            wanted = _expected_improvement(model, rows, excess[at_budget].min())
        best: Levels = rows[int(np.argmax(wanted))]
        return best

    def _instructive(self, finished: Sequence[MaskTrial]) -> list[MaskTrial]:
        """Trials with a score; and, if one of these is at the budget, invalid masks at the budget.

        An invalid mask counts as bad as the worst mask with a score. If only single layers had
        scores, the invalid masks would look like the best ones at the budget.
        """
        valid = [trial for trial in finished if math.isfinite(trial.loss)]
        if not any(self.space.is_at_budget(trial.mask) for trial in valid):
            return valid
        return [
            trial
            for trial in finished
            if math.isfinite(trial.loss) or self.space.is_at_budget(trial.mask)
        ]

    def _model(self, levels: Levels, excess: Floats, running: Levels) -> InteractionModel:
        """The model of the finished masks, and of running masks at the losses expected of them."""
        harm = np.full((self.n_layers, self.space.n_levels), np.nan)
        alone = (levels > 0).sum(axis=1) == 1
        layers = levels[alone].argmax(axis=1)
        harm[layers, levels[alone].max(axis=1) - 1] = np.abs(excess[alone])
        typical = float(np.nanmedian(harm)) if alone.any() else 1.0
        scales = np.maximum(np.nan_to_num(harm, nan=typical), 0.1 * typical + _TINY)
        model = InteractionModel(levels, excess, scales)
        if not len(running):
            return model
        expected = np.concatenate([excess, model.mean(running)])
        return InteractionModel(np.vstack([levels, running]), expected, scales)

    def _candidates(self, model: InteractionModel, incumbents: Levels, history: History) -> Levels:
        """The unseen masks among the model's optimum, the incumbents, and their neighbours."""
        allowed = self._allowed(history)
        most = _N_LIKELY + len(history)  # so that enough are left if the likeliest were all seen
        starts = [*self._optimum(model, allowed), *incumbents]
        near = [best_neighbours(self.space, model, row, allowed, most)[0] for row in starts]
        rows = np.unique(np.vstack([*near, *starts]), axis=0)
        rows = rows[allowed[np.arange(self.n_layers), rows].all(axis=1)]
        unseen = [row for row in rows if _mask(row) not in history.taken]
        return np.array(unseen, dtype=int).reshape(-1, self.n_layers)

    def _allowed(self, history: History) -> npt.NDArray[np.bool_]:
        """``[n_layers, 1 + n_levels]`` whether a layer may get a level."""
        allowed = np.full((self.n_layers, 1 + self.space.n_levels), True)
        allowed[:, 1 + self.space.deepest :] = False
        for layer, level in self.shunned(history):
            allowed[layer, level] = False
        return allowed

    def _optimum(self, model: InteractionModel, allowed: npt.NDArray[np.bool_]) -> list[Levels]:
        """The best mask that switches lead to, from where each layer's own harm or greed leads."""
        starts = [self._greedy(model, allowed)]
        if self.space.n_levels > 1:
            harms = np.where(allowed, model.linear, np.inf)[:, 1:]
            starts.append(cheapest(self.space, harms))
        found = [self._descended(model, m, allowed) for m in starts if m is not None]
        return sorted(found, key=lambda row: float(model.mean(row[None])[0]))[:1]

    def _greedy(self, model: InteractionModel, allowed: npt.NDArray[np.bool_]) -> LayerMask | None:
        """The mask at the budget that steps lead to, each the least harmful for what it saves."""
        mask = LayerMask.empty(self.n_layers)
        steps = np.array((*self.space.steps, 1))
        while self.space.saved(mask) < self.space.least:
            row = np.array(mask.levels)
            options = row + np.eye(self.n_layers, dtype=int)
            ups = np.minimum(row + 1, self.space.n_levels)
            is_possible = (row < self.space.n_levels) & allowed[np.arange(self.n_layers), ups]
            layers = np.flatnonzero(is_possible)
            if not len(layers):
                return None
            means = model.mean(np.vstack([row, options[layers]]))
            best = int(layers[np.argmin((means[1:] - means[0]) / steps[row[layers]])])
            mask = mask.with_level(best, mask.levels[best] + 1)
        while not self.space.is_at_budget(mask):
            backs = [mask.with_level(n, mask.levels[n] - 1) for n in mask.layers]
            backs = [back for back in backs if self.space.saved(back) >= self.space.least]
            mask = backs[int(np.argmin(model.mean(np.array([back.levels for back in backs]))))]
        return mask

    def _descended(
        self, model: InteractionModel, mask: LayerMask, allowed: npt.NDArray[np.bool_]
    ) -> Levels:
        """The mask after the best changes, until none improves its expected loss."""
        best = np.array(mask.levels)
        for _ in range(_MAX_SWITCHES):
            rows, added = best_neighbours(self.space, model, best, allowed, 1)
            if not len(rows) or added[0] >= 0:
                break
            best = rows[0]
        return best

    def _levels(self, trials: Sequence[MaskTrial]) -> Levels:
        levels = np.array([trial.mask.levels for trial in trials], dtype=int)
        return levels.reshape(-1, self.n_layers)


def _finite(losses: Sequence[float]) -> Floats:
    """The losses; those of invalid masks are replaced by the worst valid loss."""
    array = np.array(losses)
    worst = array[np.isfinite(array)].max()
    return np.where(np.isfinite(array), array, worst)


def _mask(row: Levels) -> LayerMask:
    return LayerMask(tuple(int(level) for level in row))


def _expected_improvement(model: InteractionModel, rows: Levels, best: float) -> Floats:
    """``[k]`` expected gain over ``best``; 0 for all but the likeliest rows, which saves time."""
    mean = model.mean(rows)
    likely = np.argsort(mean, kind="stable")[:_N_LIKELY]
    deviation = model.deviation(rows[likely])
    ahead = (best - mean[likely]) / deviation
    improvement = np.zeros(len(rows))
    below = np.array([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in ahead])
    density = np.exp(-(ahead**2) / 2) / math.sqrt(2 * math.pi)
    improvement[likely] = deviation * (ahead * below + density)
    return improvement
