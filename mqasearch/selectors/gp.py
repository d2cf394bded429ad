"""Bayesian search with a model of single layers and pairs of layers."""

import math
from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.interactions import Floats, InteractionModel
from mqasearch.selectors.selector import Selector, Wants

_N_LEARNED = 400
_N_LIKELY = 200
_N_INCUMBENTS = 3
_MAX_SWAPS = 20
_TINY = 1e-12


class GPSelector(Selector):
    """Each layer alone, then the masks with the largest expected improvement.

    The model (:class:`InteractionModel`) starts as the sensitivity ranking, so the ranking's mask
    at the budget is proposed first. From every further mask it learns which layers suit each other.
    Candidates are the model's own optimum, found by greedy selection and swaps, and every mask that
    is one swap away from it or from the best masks so far. The candidate with the largest expected
    improvement (Jones et al. 1998) is proposed. A running mask counts with the loss expected of it
    (the "kriging believer"), which spreads workers out. Layers that have no score alone are left
    out of every further mask.

    Args:
        n_layers: layers of the model.
        n_converted: layers that a mask at the budget converts.
        seed: used once every promising mask has been seen.
        n_masks: masks at the budget to score after the layers alone, ≥ 1; the plan ends there.

    Raises:
        UserError: ``n_masks`` below 1.
    """

    name: ClassVar[str] = "gp"
    summary: ClassVar[str] = "Bayesian search: layers alone, then a Gaussian process on pairs"
    ends: ClassVar[bool] = True
    counted: ClassVar[str | None] = "n_masks"

    def __init__(
        self, n_layers: int, n_converted: int, seed: int = 0, *, n_masks: int = 20
    ) -> None:
        super().__init__(n_layers, n_converted, seed)
        if n_masks < 1:
            raise UserError(f"n_masks {n_masks} is too few; choose 1 or more")
        self.n_masks = n_masks

    def wants(self, history: History) -> Wants:
        """The next layer alone, else the most promising candidate, until enough are scored."""
        at_budget = [t for t in history if t.mask.n_converted == self.n_converted]
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
        """Masks at the budget to score; at a budget of one layer, these are the single layers."""
        return self.n_layers if self.n_converted == 1 else self.n_masks

    def expected_trials(self) -> int:
        """One for the original, one for each layer alone, and the masks at the budget."""
        return 1 + self.n_layers + self.n_masks

    def least_trials(self) -> int:
        """One for the original, one for each layer alone, and the first mask at the budget."""
        return 2 if self.n_converted == 1 else self.n_layers + 2

    def _next(self, history: History) -> LayerMask:
        original = LayerMask.empty(self.n_layers)
        for mask in (original, *(original.with_layers(n) for n in range(self.n_layers))):
            if mask not in history.taken:
                return mask
        row = self._most_promising(history)
        if row is None:
            return self.random_mask(history, self.generator(history))
        return _mask(row)

    def _most_promising(self, history: History) -> Floats | None:
        """The unseen candidate with the largest expected improvement, as ``[n_layers]`` flags."""
        original = LayerMask.empty(self.n_layers)
        finished = self._instructive([t for t in history if t.finished and t.mask != original])
        if not finished:
            return None
        # The worst masks teach least, and the cost grows with the cube of their number.
        finished.sort(key=lambda trial: (trial.mask.n_converted > 1, trial.loss))
        finished = finished[:_N_LEARNED]
        flags, losses = self._flags(finished), _finite([trial.loss for trial in finished])
        base = next((t.loss for t in history if t.mask == original), math.nan)
        excess = losses - (base if math.isfinite(base) else losses.min())
        model = self._model(flags, excess, self._flags([t for t in history if not t.finished]))
        at_budget = flags.sum(axis=1) == self.n_converted
        incumbents = flags[at_budget][np.argsort(excess[at_budget], kind="stable")]
        shunned = sorted(self.shunned(history))
        rows = self._candidates(model, incumbents[:_N_INCUMBENTS], history.taken, shunned)
        if not len(rows):
            return None
        if not len(incumbents):
            wanted = -model.mean(rows)
        else:
            wanted = _expected_improvement(model, rows, excess[at_budget].min())
        best: Floats = rows[int(np.argmax(wanted))]
        return best

    def _instructive(self, finished: Sequence[MaskTrial]) -> list[MaskTrial]:
        """Trials with a score; and, if one of these is at the budget, invalid masks at the budget.

        An invalid mask counts as bad as the worst mask with a score. If only single layers had
        scores, the invalid masks would look like the best ones at the budget.
        """
        valid = [trial for trial in finished if math.isfinite(trial.loss)]
        if not any(trial.mask.n_converted == self.n_converted for trial in valid):
            return valid
        at_budget = self.n_converted
        return [t for t in finished if math.isfinite(t.loss) or t.mask.n_converted == at_budget]

    def _model(self, flags: Floats, excess: Floats, running: Floats) -> InteractionModel:
        """The model of the finished masks, and of running masks at the losses expected of them."""
        harm = np.full(self.n_layers, np.nan)
        alone = flags.sum(axis=1) == 1
        harm[flags[alone].argmax(axis=1)] = np.abs(excess[alone])
        typical = float(np.nanmedian(harm)) if alone.any() else 1.0
        scales = np.maximum(np.nan_to_num(harm, nan=typical), 0.1 * typical + _TINY)
        model = InteractionModel(flags, excess, scales)
        if not len(running):
            return model
        expected = np.concatenate([excess, model.mean(running)])
        return InteractionModel(np.vstack([flags, running]), expected, scales)

    def _candidates(
        self,
        model: InteractionModel,
        incumbents: Floats,
        seen: Collection[LayerMask],
        shunned: Sequence[int],
    ) -> Floats:
        """The unseen masks among the model's optimum, the incumbents, and their swap neighbours."""
        starts = [self._optimum(model, shunned), *incumbents]
        rows = np.unique(np.vstack([_swaps(row) for row in starts] + starts), axis=0)
        rows = _without(rows, shunned)
        unseen = [row for row in rows if _mask(row) not in seen]
        return np.array(unseen).reshape(-1, self.n_layers)

    def _optimum(self, model: InteractionModel, shunned: Sequence[int]) -> Floats:
        """Greedy selection, then swaps until no swap improves the expected loss of the mask."""
        best = np.zeros(self.n_layers)
        for _ in range(self.n_converted):
            options = _without(best + np.eye(self.n_layers)[best == 0], shunned)
            best = options[np.argmin(model.mean(options))]
        for _ in range(_MAX_SWAPS):
            options = np.vstack([best, _without(_swaps(best), shunned)])
            place = int(np.argmin(model.mean(options)))
            if place == 0:
                break
            best = options[place]
        return best

    def _flags(self, trials: Sequence[MaskTrial]) -> Floats:
        flags = np.array([trial.mask.flags for trial in trials], dtype=float)
        return flags.reshape(-1, self.n_layers)


def _finite(losses: Sequence[float]) -> Floats:
    """The losses; those of invalid masks are replaced by the worst valid loss."""
    array = np.array(losses)
    worst = array[np.isfinite(array)].max()
    return np.where(np.isfinite(array), array, worst)


def _mask(row: Floats) -> LayerMask:
    return LayerMask(tuple(bool(flag) for flag in row))


def _without(rows: Floats, layers: Sequence[int]) -> Floats:
    """The masks that convert none of ``layers``."""
    kept: Floats = rows[~rows[:, list(layers)].any(axis=1)]
    return kept


def _swaps(row: Floats) -> Floats:
    """``[k·(n−k), n]`` every mask with one layer taken out and another one put in."""
    inside, outside = np.flatnonzero(row), np.flatnonzero(row == 0)
    removed, added = (pairs.ravel() for pairs in np.meshgrid(inside, outside))
    rows = np.tile(row, (len(removed), 1))
    rows[np.arange(len(rows)), removed] = 0
    rows[np.arange(len(rows)), added] = 1
    return rows


def _expected_improvement(model: InteractionModel, rows: Floats, best: float) -> Floats:
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
