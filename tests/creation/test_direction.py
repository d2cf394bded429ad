"""Which way the objective goes is decided when a study is made, and by nobody afterwards."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from optuna.study import StudyDirection
from studies_on_fake import run_study, spec_of, studies_of
from tasks.small_tasks import load_small

from mqasearch import cli
from mqasearch.creation.create import create_studies
from mqasearch.creation.names import checked_study, maximizes
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.errors import SpecError, UserError
from mqasearch.export import export
from mqasearch.mask import KVHeads
from mqasearch.record import STUDY_KEY, Storage, confirmation, study_facts
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.study import best_trial, compare, finished
from mqasearch.tasks import metrics

PERPLEXITY = {"name": "rolling", "metric": "word_perplexity"}
MATCHES = {"name": "generate", "metric": "exact_match"}
"""Metrics whose direction only lm-eval knows."""


class Perplexed(FakeScorer):
    """With a metric that falls, as lm-eval's rolling tasks have, and one that rises."""

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        score = super().score(kv_heads, task, documents)
        bits = score.documents["bits_per_byte"]
        found = {
            "word_perplexity": tuple(map(math.exp, bits)),
            "exact_match": tuple(-b for b in bits),
        }
        means = {metric: sum(values) / len(values) for metric, values in found.items()}
        return replace(
            score,
            values={**score.values, **means},
            documents={**score.documents, **found},
            stderr={**score.stderr, **dict.fromkeys(means, 0.1)},
        )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "load_task", load_small)


@pytest.mark.parametrize(
    ("task", "rises"), [(PERPLEXITY, False), (MATCHES, True), ("choice", False)]
)
def test_all_that_looks_at_a_study_knows_its_direction(
    storage: Storage, task: object, rises: bool
) -> None:
    spec = spec_of(tasks=[task], selectors=["sensitivity", "greedy"], pruner="wilcoxon")
    scorer = Perplexed(6)
    run_study(storage, spec, scorer)
    metric = spec.tasks[0].metric
    best = max if rises else min
    for study in studies_of(storage):
        facts = study_facts(study.user_attrs)
        assert facts is not None
        assert facts.maximize == rises
        assert (study.direction == StudyDirection.MAXIMIZE) == rises
        at_budget = [row for row in finished(study) if row.facts.n_converted == 3]
        found = best_trial(study)
        assert found is not None
        assert found.facts.value == best(row.facts.value for row in at_budget)
        held_out = confirmation(study.user_attrs)
        assert held_out is not None
        assert held_out["mask"] == found.facts.mask
        assert metric in held_out["tasks"][spec.tasks[0].name]
    values = [row.value for row in compare(studies_of(storage))]
    document = export("s", studies_of(storage))
    assert document["objective"]["direction"] == ("maximize" if rises else "minimize")
    (comparison,) = read_comparisons(storage.optuna)
    assert {row.maximize for row in comparison.studies} == {rises}
    first = document["masks"][0]["study"]["name"]
    by_name = dict(zip([study.study_name for study in studies_of(storage)], values, strict=True))
    assert by_name[first] == best(values)  # type: ignore[type-var]


def test_metrics_of_both_directions_are_no_objective(storage: Storage) -> None:
    spec = spec_of(tasks=[PERPLEXITY, MATCHES])
    message = (
        r"cannot both rise and fall \(word_perplexity of rolling falls, "
        r"exact_match of generate rises\)"
    )
    with pytest.raises(UserError, match=message) as said:
        create_studies(storage.optuna, spec, FakeScorer(6).shape)
    assert "\n" not in str(said.value)
    assert not storage.optuna.get_all_studies()
    with pytest.raises(SpecError, match=message):
        checked_study(spec.model_dump(mode="json"), "s.yaml")


def test_metrics_of_other_names_and_one_direction_are_one() -> None:
    assert not maximizes({"rolling": "word_perplexity", "choice": "bits_per_byte"})
    assert maximizes({"generate": "exact_match", "choice": "acc"})


def test_a_study_that_an_older_version_told_to_go_the_wrong_way_is_refused(
    storage: Storage,
) -> None:
    spec = spec_of(tasks=[PERPLEXITY], selectors=["greedy"])
    create_studies(storage.optuna, spec, FakeScorer(6).shape)
    (study,) = studies_of(storage)
    study.set_user_attr(STUDY_KEY, study.user_attrs[STUDY_KEY] | {"direction": "maximize"})
    with pytest.raises(UserError, match=r"was told to maximize what it must minimize; choose"):
        create_studies(storage.optuna, spec, FakeScorer(6).shape)


def test_a_metric_that_the_scores_lack_is_one_line_and_no_trial_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = spec_of(tasks=[PERPLEXITY], selectors=["greedy"]).model_dump(mode="json")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    url = f"sqlite:///{tmp_path / 's.db'}"
    line = ["mqasearch", "run", str(tmp_path / "s.yaml"), "--storage", url]
    monkeypatch.setattr(sys, "argv", [*line, "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "not every document that was scored has word_perplexity; all have acc" in (
        capsys.readouterr().err
    )
