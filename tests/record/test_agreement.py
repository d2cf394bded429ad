"""Workers whose scores would not be comparable are refused, with what differs and what to do."""

import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies_on_fake import run_study, scoring_of, spec_of, storage_in, studies_of

from mqasearch import __version__, cli
from mqasearch.creation import create_studies, versions
from mqasearch.errors import ModelError, SpecError
from mqasearch.mask import KVHeads
from mqasearch.record import attributes
from mqasearch.record.attributes import (
    MODEL_KEY,
    STUDY_KEY,
    ModelFacts,
    agree_on_model,
    model_facts,
    study_facts,
)
from mqasearch.record.attributes_table import record_once
from mqasearch.record.storage import open_storage
from mqasearch.score import Documents, ScoreKey, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.study import find_studies
from mqasearch.worker import NO_LIMITS, Watcher, run, work_with
from mqasearch.worker.run import task_versions

FACTS = ModelFacts(
    fingerprint="a1" * 32,
    dtype="float32",
    merge="mean",
    calibration="",
    versions=versions(),
    tasks={"hellaswag": "1", "piqa": "0"},
    tokenizer="e5" * 32,
    code="f6" * 32,
)
ANOTHER = "create another study (with another name in the study file)"


def with_version(package: str, version: str) -> ModelFacts:
    return replace(FACTS, versions={**FACTS.versions, package: version})


def agree(study: optuna.Study, mine: ModelFacts) -> None:
    agree_on_model(study._storage, study, mine)


@pytest.fixture
def study() -> optuna.Study:
    """In memory, and agreed on."""
    study = optuna.create_study(study_name="demo.greedy")
    agree(study, FACTS)
    return study


def refusal(study: optuna.Study, mine: ModelFacts) -> str:
    with pytest.raises(ModelError) as refused:
        agree(study, mine)
    message = str(refused.value)
    assert "\n" not in message
    assert "study 'demo.greedy'" in message
    assert model_facts(study.user_attrs) == FACTS
    return message.partition("'demo.greedy': ")[2]


@pytest.mark.parametrize(
    ("package", "mine", "cure"),
    [
        ("mqasearch", "0.0.9", f"mqasearch=={__version__}"),
        ("transformers", "4.0", f"transformers=={FACTS.versions['transformers']}"),
        ("torch", "1.0+cpu", f"torch=={FACTS.versions['torch'].partition('+')[0]}"),
    ],
)
def test_a_package_that_differs(study: optuna.Study, package: str, mine: str, cure: str) -> None:
    there = FACTS.versions[package]
    message = refusal(study, with_version(package, mine))
    assert f"{package} {mine} here" in message
    assert there in message
    assert f"pip install {cure}, " in message
    assert message.endswith(ANOTHER)


def test_code_that_differs_because_a_package_does_is_said_once(study: optuna.Study) -> None:
    message = refusal(study, replace(with_version("torch", "1.0"), code="d4" * 32))
    assert "scoring code" not in message


def test_builds_of_a_version_may_work_together() -> None:
    study = optuna.create_study()
    agree(study, with_version("torch", "2.1.0+cu126"))
    agree(study, with_version("torch", "2.1.0+cpu"))


@pytest.mark.parametrize(
    ("changes", "words", "cure"),
    [
        (
            {"fingerprint": "b2" * 32},
            "model fingerprint: b2b2b2b2b2b2 here, a1a1a1a1a1a1 in the study",
            "give this worker the weights that the study uses, or ",
        ),
        (
            {"dtype": "bfloat16"},
            "dtype bfloat16 here, float32 in the study",
            "use a device that computes in the study's dtype, or ",
        ),
        ({"merge": "first"}, "merge first here, mean in the study", ""),
        (
            {"calibration": "c3" * 32},
            "calibration c3c3c3c3c3c3 here, none in the study",
            "give this worker the benchmark data that the study uses, or ",
        ),
        (
            {"tasks": {"hellaswag": "2", "piqa": "0"}},
            "task hellaswag of version 2 here, 1 in the study",
            "give this worker the task files that the study uses, or ",
        ),
        (
            {"tokenizer": "d4" * 32},
            "tokenizer d4d4d4d4d4d4 here, e5e5e5e5e5e5 in the study",
            "give this worker the tokenizer that the study uses, or ",
        ),
        (
            {"code": "d4" * 32},
            "mqasearch's scoring code d4d4d4d4d4d4 here, f6f6f6f6f6f6 in the study",
            "give this worker the mqasearch that the study uses, or ",
        ),
    ],
)
def test_whatever_else_differs(
    study: optuna.Study, changes: dict[str, Any], words: str, cure: str
) -> None:
    assert refusal(study, replace(FACTS, **changes)) == f"{words}; {cure}{ANOTHER}"


def test_everything_that_differs_is_named_at_once(study: optuna.Study) -> None:
    mine = replace(
        with_version("lm_eval", "0.1"),
        fingerprint="b2" * 32,
        tasks={"hellaswag": "2", "piqa": "3"},
    )
    message = refusal(study, mine)
    for words in ("model fingerprint: b2", "lm_eval 0.1 here", "task hellaswag", "task piqa"):
        assert words in message
    assert message.endswith(f"pip install lm_eval=={FACTS.versions['lm_eval']}, or {ANOTHER}")


def test_equal_workers_agree(study: optuna.Study) -> None:
    agree(study, FACTS)
    assert model_facts(study.user_attrs) == FACTS


def test_what_older_and_newer_code_wrote_is_understood() -> None:
    row = asdict(FACTS)
    older, newer = optuna.create_study(), optuna.create_study()
    later = ("tasks", "tokenizer", "code")
    older.set_user_attr(MODEL_KEY, {key: row[key] for key in row if key not in later})
    newer.set_user_attr(MODEL_KEY, row | {"moon": "full"})
    for study in (older, newer):
        agree(study, FACTS)
        with pytest.raises(ModelError, match="dtype"):
            agree(study, replace(FACTS, dtype="float16"))


@pytest.fixture
def created(tmp_path: Path) -> Iterator[optuna.Study]:
    """By a newer mqasearch, and without a worker so far."""
    with closing(storage_in(tmp_path)) as storage:
        create_studies(storage.optuna, spec_of(selectors=["greedy"]), FakeScorer(6).shape)
        (study,) = studies_of(storage)
        change_facts(study, versions={**versions(), "mqasearch": "99.0"})
        yield study


def change_facts(study: optuna.Study, **changes: object) -> None:
    study.set_user_attr(STUDY_KEY, study.user_attrs[STUDY_KEY] | changes)


def test_the_first_worker_has_the_mqasearch_that_created_the_study(created: optuna.Study) -> None:
    with pytest.raises(ModelError, match=r"mqasearch .* here, 99\.0 .*pip install mqasearch==99"):
        agree(created, FACTS)
    assert model_facts(created.user_attrs) is None
    agree(created, with_version("mqasearch", "99.0"))


def test_a_study_file_of_a_newer_mqasearch_says_so(created: optuna.Study) -> None:
    change_facts(created, moon="full", spec=created.user_attrs[STUDY_KEY]["spec"] | {"moon": 1})
    facts = study_facts(created.user_attrs)
    assert facts is not None
    with pytest.raises(SpecError, match=rf"by mqasearch 99\.0 \(this is {__version__}\).*moon"):
        _ = facts.study_spec


def test_the_scorer_tells_its_versions_of_the_tasks() -> None:
    spec = spec_of(tasks=["hellaswag", "piqa"])
    assert task_versions(FakeScorer(4), spec) == {"hellaswag": "0", "piqa": "0"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'race.db'}"
    address: str = request.getfixturevalue("postgres_url")
    return address


def race(url: str, facts: list[ModelFacts], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Workers that have all found nothing recorded before any of them records; who is refused."""
    with closing(open_storage(url)) as storage:
        optuna.create_study(study_name="s", storage=storage.optuna)
    together = threading.Barrier(len(facts), timeout=60)
    refused = []

    def meet(*args: Any) -> None:
        together.wait()
        record_once(*args)

    def come(index: int) -> None:
        with closing(open_storage(url, create=False)) as storage:
            study = optuna.load_study(study_name="s", storage=storage.optuna)
            try:
                agree(study, facts[index])
            except ModelError:
                refused.append(index)

    monkeypatch.setattr(attributes, "record_once", meet)
    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refused


def test_of_several_that_come_first_at_once_one_wins(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [replace(FACTS, fingerprint=str(index) * 64) for index in range(4)]
    refused = race(url, facts, monkeypatch)
    assert len(refused) == 3
    with closing(open_storage(url)) as storage:
        study = optuna.load_study(study_name="s", storage=storage.optuna)
        (winner,) = set(range(4)) - set(refused)
        assert model_facts(study.user_attrs) == facts[winner]


def test_equal_ones_that_come_first_at_once_all_work(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert race(url, [FACTS] * 3, monkeypatch) == []


def test_a_worker_of_another_model_scores_nothing(tmp_path: Path) -> None:
    with closing(storage_in(tmp_path)) as storage:
        spec = spec_of(selectors=["greedy"])
        create_studies(storage.optuna, spec, FakeScorer(6).shape)
        (study,) = studies_of(storage)
        agree(study, FACTS)
        scorer = FakeScorer(6)
        with pytest.raises(ModelError, match="model fingerprint: fake:6"):
            work_with(
                scoring_of(scorer), storage, find_studies(storage.optuna, "s"), NO_LIMITS, Watcher()
            )
        assert scorer.n_scored == 0


@pytest.mark.parametrize("what", ["tokenizer", "code"])
def test_a_worker_with_another_tokenizer_or_other_code_scores_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = FakeScorer(6), FakeScorer(6)
    one.tokenizer, two.tokenizer = "a" * 64, ("b" if what == "tokenizer" else "a") * 64
    with closing(storage_in(tmp_path)) as storage:
        spec = spec_of(selectors=["greedy"])
        run_study(storage, spec, one, n_trials=1)
        if what == "code":
            monkeypatch.setattr(run, "scoring_code", lambda: "c" * 64)
        with pytest.raises(ModelError, match=f"{what} .* here, .* in the study; give this worker"):
            run_study(storage, spec, two)
        assert two.n_scored == 0


def test_a_worker_with_another_version_of_a_task_scores_nothing(tmp_path: Path) -> None:
    class Newer(FakeScorer):
        def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
            return replace(super().key(kv_heads, task, documents), task_version="7")

    with closing(storage_in(tmp_path)) as storage:
        spec = spec_of(selectors=["greedy"])
        run_study(storage, spec, FakeScorer(6), n_trials=1)
        scorer = Newer(6)
        with pytest.raises(ModelError, match="task hellaswag of version 7 here, 0 in the study"):
            run_study(storage, spec, scorer)
        assert scorer.n_scored == 0


def test_on_the_command_line_it_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(storage_in(tmp_path)) as storage:
        spec = spec_of(model="fake:6", selectors=["greedy"])
        create_studies(storage.optuna, spec, FakeScorer(6).shape)
        (study,) = studies_of(storage)
        theirs = {**versions(), "mqasearch": "99.0"}
        change_facts(study, versions=theirs)
        storage_url = f"sqlite:///{tmp_path / 'studies.db'}"
    line = ["mqasearch", "worker", "--study-name", "s", "--storage", storage_url]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"mqasearch {__version__} here, 99.0 in the study; pip install mqasearch==99.0" in err
