"""Several workers at once on one study: real processes, real PostgreSQL, the fake model."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from sqlalchemy import text
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.mask import LayerMask
from mqasearch.queue import list_workers
from mqasearch.record import open_storage
from mqasearch.scoring import FakeScorer
from mqasearch.study import compare, finished

SELECTORS = ["sensitivity", "greedy", {"name": "random", "n_trials": 10}]


def command(*words: str, url: str) -> list[str]:
    return [sys.executable, "-m", "mqasearch", *words, "--storage", url]


@pytest.mark.parametrize("n_workers", [3])
def test_workers_share_a_study_and_end_with_what_one_worker_finds(
    postgres_url: str, tmp_path: Path, n_workers: int
) -> None:
    spec = spec_of(model="fake:6:0.05", selectors=SELECTORS)
    study_file = tmp_path / "s.yaml"
    study_file.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command("create", str(study_file), url=postgres_url), check=True)
    workers = [
        subprocess.Popen(
            command("worker", "--study-name", "s", url=postgres_url),
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(n_workers)
    ]
    for worker in workers:
        _, err = worker.communicate(timeout=240)
        assert worker.returncode == 0, err

    alone = storage_in(tmp_path)
    run_study(alone, spec, FakeScorer(6, seconds=0.05))
    shared = open_storage(postgres_url)
    planned = slice(0, 2)
    assert [row.layers for row in compare(studies_of(shared))][planned] == [
        row.layers for row in compare(studies_of(alone))
    ][planned]
    check_nothing_twice(shared.engine, studies_of(shared))
    assert list_workers(shared.engine) == []
    shared.close()
    alone.close()


def check_nothing_twice(engine, studies: list[optuna.Study]) -> None:  # type: ignore[no-untyped-def]
    """Every mask has one score, no trial is left, and the random study has its number of trials."""
    for study in studies:
        assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
        masks = [row.facts.mask for row in finished(study)]
        assert len(masks) == len(set(masks))
    assert len(studies[2].trials) == 10
    every = {row.facts.mask for study in studies for row in finished(study)}
    with engine.connect() as connection:
        scored = connection.execute(
            text("SELECT documents, kv_heads FROM mqasearch_score ORDER BY 1, 2")
        ).all()
    assert len(scored) == len(set(scored))
    confirmed = {row.mask for row in compare(studies)} | {str(LayerMask.empty(6))}
    assert len(scored) == len(every) + len(confirmed)
    scored_once = [row for study in studies for row in finished(study) if not row.facts.reused]
    assert len(scored_once) == len({row.facts.mask for row in scored_once}) == len(every)
