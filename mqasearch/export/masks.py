"""From the database to mask JSON: the best mask per selector, and the front over budgets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna

from mqasearch.errors import NoMaskError
from mqasearch.export.evidence_keys import evidence
from mqasearch.export.mask_json import SCHEMA_VERSION
from mqasearch.heal_recipe import DEVICES, ENDINGS, most_text_tokens, recipe_of
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.record import (
    ENQUEUED,
    StudyFacts,
    TrialFacts,
    confirmation,
    model_facts,
    study_facts,
)
from mqasearch.spec import StudySpec
from mqasearch.statistics import corrected
from mqasearch.study import FinishedTrial, Verdict, as_data, best_trial, finished, front, ranked


def export(
    name: str, studies: Sequence[optuna.Study], verdict: Verdict | None = None
) -> dict[str, Any]:
    """The document that ``mqasearch export`` writes.

    Args:
        name: name of the comparison.
        studies: its Optuna studies, all of one study file.
        verdict: verdict of the whole study file, if it has a tolerance.

    Raises:
        NoMaskError: no study has a mask at its budget yet.
    """
    rows = [(facts, study) for study in studies if (facts := study_facts(study.user_attrs))]
    finalists = [row for facts, study in rows for row in _finalists(facts, study)]
    if not finalists:
        raise NoMaskError(
            f"study {name!r} has no scored mask at its budget yet; start a worker with "
            f"`mqasearch worker --storage URL --study-name {name}`"
        )
    facts = finalists[0].of
    maximize = facts.direction == "maximize"
    # Masks enqueued by name need not meet any budget: they come behind those that do.
    finalists = sorted(ranked(finalists, maximize=maximize), key=lambda row: row.is_named)
    every = [row for _, study in rows for row in finished(study)]
    original = next((row.value for row in every if row.n_converted == 0), None)
    return {
        "schema_version": SCHEMA_VERSION,
        "study": name,
        "objective": {
            "direction": facts.direction,
            "tasks": {task.name: task.metric for task in facts.study_spec.tasks},
            "original": original,
        },
        "masks": corrected([mask_document(row, row.of, row.study) for row in finalists]),
        "front": _front(every, facts),
        **({} if verdict is None else {"verdict": as_data(verdict)}),
    }


@dataclass(frozen=True, slots=True)
class _Finalist(FinishedTrial):
    """A trial whose mask is exported, with its study."""

    of: StudyFacts
    study: optuna.Study

    @property
    def is_named(self) -> bool:
        """Whether its mask was enqueued by name."""
        return self.of.selector == ENQUEUED


def _finalists(facts: StudyFacts, study: optuna.Study) -> list[_Finalist]:
    """A selector's best mask, or every mask that was enqueued by name."""
    if facts.selector == ENQUEUED:
        chosen = [trial for trial in finished(study) if trial.n_converted]
    else:
        best = best_trial(study)
        chosen = [] if best is None else [best]
    return [_Finalist(trial.number, trial.facts, trial.order, facts, study) for trial in chosen]


def _budget(best: FinishedTrial, facts: StudyFacts, spec: StudySpec) -> dict[str, Any]:
    """The study's budget; for a mask that was enqueued by name, its own size."""
    if facts.selector == ENQUEUED:
        if len(facts.numbers) == 1:
            return {"n_layers": best.facts.n_converted}
        original = facts.original_kv_bytes(best.facts)
        return {"kv_bytes_fraction": best.facts.kv_bytes_per_token / original}
    return spec.budget[0].model_dump(mode="json", exclude_none=True)


def mask_document(best: FinishedTrial, facts: StudyFacts, study: optuna.Study) -> dict[str, Any]:
    """One mask JSON."""
    spec = facts.study_spec
    shape = ModelShape(**facts.shape)
    model = model_facts(study.user_attrs)
    searched = _search_scores(best.facts)
    held_out = _held_out(best, study)
    scores = searched
    baseline: dict[str, Any] = {}
    delta: dict[str, Any] = {}
    healed: dict[str, Any] = {}
    if held_out is not None:
        scores, baseline, delta = evidence(held_out["tasks"])
        if "healed" in held_out:
            healed = {"healed": _healed(held_out["healed"], spec, scores, delta)}
            scores, baseline, delta = evidence(held_out["healed"]["tasks"])
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": spec.model.name,
            "fingerprint": model.fingerprint if model else None,
            **({"revision": spec.model.revision} if spec.model.revision else {}),
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
        },
        **({"dtype": model.dtype} if model else {}),
        "merge": spec.merge.model_dump(mode="json"),
        "calibration": _calibration(model.calibration if model else "", spec),
        **healed,
        **_layers(best.facts, facts),
        "levels": sorted(facts.numbers),
        "budget": _budget(best, facts, spec),
        "kv_bytes_per_token": {
            "original": facts.original_kv_bytes(best.facts),
            "converted": best.facts.kv_bytes_per_token,
        },
        "scores": scores,
        "search_scores": searched,
        "baseline": baseline,
        "delta": delta,
        "study": {
            "name": study.study_name,
            "selector": best.facts.name if facts.selector == ENQUEUED else facts.selector,
            "trial_number": best.number,
            "n_trials": len(finished(study)),
        },
        "versions": facts.versions,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _calibration(digest: str, spec: StudySpec) -> dict[str, Any] | None:
    """What is needed to calibrate again: the texts, and the digest of the resulting statistics."""
    if not digest:
        return None
    return {
        "digest": digest,
        "tasks": [{"name": task.name, "num_fewshot": task.num_fewshot} for task in spec.tasks],
        "n_tokens": spec.documents.calibration_tokens,
        "seed": spec.documents.seed,
    }


def _layers(facts: TrialFacts, of: StudyFacts) -> dict[str, Any]:
    mask = LayerMask.parse(facts.mask)
    return {
        "mask": [int(level > 0) for level in mask],
        "mqa_layers": list(mask.layers),
        "kv_heads": list(of.kv_heads(facts.mask)),
    }


def _search_scores(facts: TrialFacts) -> dict[str, Any]:
    """Scores on the documents that chose the mask."""
    scores: dict[str, Any] = {}
    for task, values in facts.scores.items():
        errors = facts.stderrs.get(task, {})
        common: dict[str, Any] = {"split": "search"}
        if task in facts.n_docs:  # else an older version scored it
            common["n_docs"] = facts.n_docs[task]
        scores[task] = {
            metric: {"value": value, "stderr": errors.get(metric), **common}
            for metric, value in values.items()
        }
    return scores


def _held_out(best: FinishedTrial, study: optuna.Study) -> dict[str, Any] | None:
    """The recorded results of the mask on held-out documents; None if it is not confirmed."""
    held_out = confirmation(study.user_attrs)
    is_current = held_out is not None and held_out["trial_number"] == best.number
    return held_out if is_current else None


def _healed(
    recorded: Mapping[str, Any], spec: StudySpec, scores: dict[str, Any], delta: dict[str, Any]
) -> dict[str, Any]:
    """How the mask was healed, so that ``convert`` can repeat it; and the results before it."""
    assert spec.heal is not None
    recipe, facts = recipe_of(spec.heal.steps), recorded["facts"]
    *_, gained = evidence(recorded["gained"])
    counted = ("steps", "best_step", "n_tokens", "n_text_tokens")
    return {
        "recipe": recipe.parameters,
        "text": {
            "tasks": [{"name": t.name, "num_fewshot": t.num_fewshot} for t in spec.tasks],
            "n_tokens": spec.heal.tokens or most_text_tokens(recipe),
            "seed": spec.documents.seed,
        },
        **{name: int(facts[name]) for name in counted if name in facts},
        "kl": {"before": facts.get("before"), "after": facts.get("after")},
        "ending": ENDINGS[int(facts["ending"])],
        "device": DEVICES[int(facts["device"])],
        "unhealed": {"scores": scores, "delta": delta},
        "gained": gained,
    }


def _front(every: Iterable[FinishedTrial], facts: StudyFacts) -> list[dict[str, Any]]:
    """Masks that no other beats in both KV bytes and objective, largest cache first."""
    cheapest_first = front(
        every,
        lambda row: row.facts.kv_bytes_per_token,
        maximize=facts.direction == "maximize",
    )
    return [
        {
            **_layers(row.facts, facts),
            "kv_bytes_per_token": row.facts.kv_bytes_per_token,
            "value": row.value,
            "stderr": row.facts.stderr,
            "delta": row.facts.delta,
            "delta_stderr": row.facts.delta_stderr,
            "n_docs": sum(row.facts.n_docs.values()) or None,
        }
        for row in reversed(cheapest_first)
    ]
