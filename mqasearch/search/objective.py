"""The Optuna objective: a trial's mask in, its loss or accuracy out."""

from collections.abc import Callable, Sequence

import optuna
from optuna.trial import TrialState

from mqasearch.errors import ScoreError
from mqasearch.estimate import Estimate
from mqasearch.mask import LayerMask
from mqasearch.search.attributes import StudyFacts, TrialFacts, best_of_size, set_trial_facts
from mqasearch.search.create import NAME_KEY
from mqasearch.search.evaluator import Evaluation, Evaluator
from mqasearch.search.uncertainty import stderrs
from mqasearch.selectors import INVALID_KEY, param_name


class Objective:
    """Scores the mask a selector proposes.

    A mask below the budget is a probe: its trial ends PRUNED with the value reported at step =
    number of converted layers, so that the study's best trial is always a mask at the budget. So
    does a mask that was given up in a race against the best one of its size.
    """

    def __init__(
        self,
        facts: StudyFacts,
        evaluator: Evaluator,
        on_mask: Callable[[], None] = lambda: None,
        certain: Callable[[], Sequence[LayerMask]] = tuple,
    ) -> None:
        """
        Args:
            facts: of the study.
            evaluator: scores the masks.
            on_mask: called when the trial's mask is in the database.
            certain: the masks that will be asked for next, whatever this one scores.
        """
        self.n_layers = facts.n_layers
        self.n_converted = facts.n_converted
        self.evaluator = evaluator
        self.on_mask = on_mask
        self.certain = certain

    def __call__(self, trial: optuna.Trial) -> float:
        mask = suggest_mask(trial, self.n_layers)
        self.on_mask()
        try:
            incumbent = self._incumbent(trial, mask)
            if incumbent is None:
                many = self.evaluator.scorer.gains_from_many()
                evaluation = self.evaluator.evaluate(mask, self.certain() if many else ())
            else:
                evaluation = self.evaluator.race(mask, incumbent)
            delta = self.evaluator.against_original(evaluation)
        except ScoreError as error:
            trial.set_user_attr(INVALID_KEY, str(error))
            raise
        facts = self._facts(trial, mask, evaluation, delta)
        set_trial_facts(trial, facts)
        if mask.n_converted != self.n_converted or facts.given_up is not None:
            trial.report(facts.value, step=mask.n_converted)
            raise optuna.TrialPruned
        return facts.value

    def _facts(
        self, trial: optuna.Trial, mask: LayerMask, evaluation: Evaluation, delta: Estimate
    ) -> TrialFacts:
        shape = self.evaluator.scorer.shape
        kv_heads = mask.kv_heads(shape, self.evaluator.target_kv_heads)
        return TrialFacts(
            mask=str(mask),
            n_converted=mask.n_converted,
            kv_bytes_per_token=shape.kv_bytes_per_token(kv_heads),
            value=evaluation.value,
            delta=delta.value,
            seconds=evaluation.seconds,
            reused=evaluation.reused,
            scores={task: dict(score.values) for task, score in evaluation.scores.items()},
            name=trial.user_attrs.get(NAME_KEY),
            given_up=evaluation.given_up,
            stderr=evaluation.stderr,
            delta_stderr=delta.stderr,
            stderrs={task: stderrs(score) for task, score in evaluation.scores.items()},
            n_docs={task: score.n_docs for task, score in evaluation.scores.items()},
        )

    def _incumbent(self, trial: optuna.Trial, mask: LayerMask) -> LayerMask | None:
        """The best mask of the same size so far; None where the mask is to be scored in full."""
        if self.evaluator.rule is None or NAME_KEY in trial.user_attrs:
            return None
        ended = trial.study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        )
        return best_of_size(ended, mask.n_converted, maximize=self.evaluator.maximize)


def suggest_mask(trial: optuna.Trial, n_layers: int) -> LayerMask:
    """Each layer's flag as one categorical parameter of the trial."""
    return LayerMask(
        tuple(
            bool(trial.suggest_categorical(param_name(layer), (False, True)))
            for layer in range(n_layers)
        )
    )
