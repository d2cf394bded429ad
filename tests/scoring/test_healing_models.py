"""Studies on a model that heal their finalists."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import Task
from optuna.trial import TrialState

from mqasearch import api
from mqasearch.errors import UserError
from mqasearch.export import export, read_mask, write_masks
from mqasearch.healing import healed as healed_module
from mqasearch.record import Storage
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary
from mqasearch.worker import create, work
from tests.studies_on_fake import spec_of, studies_of
from tests.tasks.small_tasks import small_task, small_tokenizer
from tests.tiny import tiny_model


def load_enough(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    return [small_task("choice", n_documents=120, name=name)]


def real_study(folder: Path, **changes: Any) -> Any:
    tiny_model("llama").save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    model = {"name": str(folder / "model"), "dtype": "float32"}
    tasks, documents = ["hellaswag"], {"search": 4, "confirmation": 8, "calibration_tokens": 200}
    return spec_of(
        model=model,
        tasks=tasks,
        documents=documents,
        budget=1,
        merge={"name": "aligned", "tune": True},
        selectors=["sensitivity"],
        **changes,
    )


def test_a_study_on_a_model_and_what_convert_makes_of_it(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converted checkpoint is the model that was confirmed: it is not healed again."""
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_enough))
    runs: list[int] = []
    make = healed_module.Healing

    def healing(*args: Any, **options: Any) -> Any:
        runs.append(1)
        return make(*args, **options)

    monkeypatch.setattr(healed_module, "Healing", healing)
    create(storage, real_study(tmp_path, heal={"steps": 12, "tokens": 900}))
    work(storage, "s", device="cpu")
    assert len(runs) == 1
    write_masks(export("s", studies_of(storage)), tmp_path / "masks.json")
    exported = read_mask(tmp_path / "masks.json")
    api.convert(tmp_path / "masks.json", tmp_path / "out")
    assert len(runs) == 1
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["scores"] == exported["scores"]
    assert written["healed"]["kl"] == exported["healed"]["kl"]


def test_too_little_text_to_heal_on_is_said_before_the_search(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_enough))
    create(storage, real_study(tmp_path, heal={"steps": 12, "tokens": 20}))
    with pytest.raises(UserError, match="healing holds one calibration text"):
        work(storage, "s", device="cpu")
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    assert not any(study.get_trials(states=done) for study in studies_of(storage))
