"""From a spec to a calibrated scorer, and from a mask back to the same calibration."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tasks.small_tasks import load_small, small_tokenizer

from mqasearch.conversion import calibration
from mqasearch.errors import MaskError, UserError
from mqasearch.models import load_model
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import scorers
from mqasearch.scoring.scorers import Scoring, calibrate_for_mask, open_scoring, search_split
from mqasearch.spec import StudySpec, parse_spec, read_yaml
from mqasearch.tasks import TaskLibrary
from tests.tiny import tiny_model

TASKS = [{"name": "group", "num_fewshot": 1}, "rolling"]
MASK = {"merge": {"name": "aligned"}, "kv_heads": [1, 4, 1], "calibration": None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, small tasks instead of lm-eval's, and a cache of its own."""
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_small))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    small_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def spec_of(folder: Path, merge: object, **changes: Any) -> StudySpec:
    data = {
        "name": "s",
        "model": {"name": str(folder), "dtype": "float32"},
        "merge": merge,
        "budget": 1,
        "tasks": TASKS,
        "documents": {"calibration_tokens": 300, "seed": 3},
        "selectors": ["greedy"],
    }
    return parse_spec(data | changes, "s.yaml")


def opened(folder: Path, merge: object, **changes: Any) -> Scoring:
    return open_scoring(spec_of(folder, merge, **changes), "cpu")


def value(found: Scoring, kv_heads: tuple[int, ...]) -> float:
    task = TaskSpec("group", num_fewshot=1)
    score = found.scorer.score(kv_heads, task, Documents("search", limit=4))
    return score.values["bits_per_byte"]


def mask_of(found: Scoring, **changes: object) -> dict[str, Any]:
    tasks = [{"name": "group", "num_fewshot": 1}, {"name": "rolling", "num_fewshot": 0}]
    described = {"digest": found.calibration, "tasks": tasks, "n_tokens": 300, "seed": 3}
    return MASK | {"calibration": described | changes}


def test_a_merge_that_reads_calibration_gets_it_and_its_scores_name_it(folder: Path) -> None:
    refitted = opened(folder, "aligned")
    merged = opened(folder, {"name": "aligned", "refit": False})
    mean = opened(folder, "mean")

    assert len(refitted.calibration) == 64
    assert merged.calibration == refitted.calibration
    assert (mean.merge, mean.calibration) == ("mean", "")
    assert refitted.merge == "aligned(first_token=64.0, refit=True)"
    key = refitted.scorer.key((1, 4, 4), TaskSpec("group"), Documents("search"))
    assert (key.merge, key.calibration) == (refitted.merge, refitted.calibration)
    values = {value(found, (1, 1, 1)) for found in (refitted, merged, mean)}
    assert len(values) == 3
    assert len({value(found, (4, 4, 4)) for found in (refitted, merged, mean)}) == 1


def test_the_second_worker_computes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(folder, "aligned", kv_heads=2)

    def run(*_: object) -> None:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(calibration, "run_base", run)
    second = opened(folder, "aligned", kv_heads=2)

    assert second.calibration == first.calibration
    assert value(second, (2, 4, 2)) == value(first, (2, 4, 2))


@pytest.mark.parametrize(
    "documents", [{"calibration_tokens": 299, "seed": 3}, {"calibration_tokens": 300}]
)
def test_other_texts_are_another_calibration(folder: Path, documents: dict[str, int]) -> None:
    assert (
        opened(folder, "aligned").calibration
        != opened(folder, "aligned", documents=documents).calibration
    )


def test_a_mask_is_calibrated_as_its_scores_were(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = opened(folder, "aligned")
    loaded = load_model(str(folder), device="cpu", dtype="float32")

    statistics = calibrate_for_mask(loaded, mask_of(found))

    assert statistics is not None
    assert statistics.digest == found.calibration
    assert all(layer.fitted.keys() == {1} for layer in statistics.layers)
    assert not [row for row in caplog.records if row.levelname == "WARNING"]
    calibrate_for_mask(loaded, mask_of(found, n_tokens=200))
    assert "is not the one that the mask was scored with" in caplog.text


def test_a_mask_whose_merge_reads_nothing_is_not_calibrated(folder: Path) -> None:
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    for name in ("mean", "best"):
        assert calibrate_for_mask(loaded, MASK | {"merge": {"name": name}}) is None


@pytest.mark.parametrize("described", [None, {"digest": "0" * 64}])
def test_a_mask_that_does_not_say_how_is_refused(folder: Path, described: object) -> None:
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    with pytest.raises(MaskError, match="needs calibration, and the mask's calibration has no"):
        calibrate_for_mask(loaded, MASK | {"calibration": described})


def test_every_merge_with_its_own_heads(folder: Path) -> None:
    """What a mask applies is what was scored: the same weights, layer by layer."""
    found = opened(folder, "aligned")
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    statistics = calibrate_for_mask(loaded, mask_of(found))
    assert statistics is not None
    for layer, fitted in enumerate(statistics.layers):
        scored = found.scorer.convertible.merged(layer, 1)  # type: ignore[attr-defined]
        for name, tensor in scored.tensors().items():
            assert torch.equal(tensor, fitted.fitted[1][name])


@pytest.mark.parametrize(
    ("merge", "split"),
    [
        ("mean", "full"),
        ("first", "full"),
        ("best", "uncalibrated"),
        ({"name": "mean", "refit": True}, "uncalibrated"),
        ("aligned", "uncalibrated"),
    ],
)
def test_no_search_scores_what_its_merge_was_fitted_to(
    folder: Path, merge: object, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mqasearch")
    spec = spec_of(folder, merge, documents={"search": "full", "calibration_tokens": 300})
    assert search_split(spec) == split
    assert search_split(spec_of(folder, merge)) == "search"
    found = open_scoring(spec, "cpu")
    said = [row for row in caplog.messages if "leaves out the calibration documents" in row]
    assert len(said) == (split == "uncalibrated")
    for task in spec.task_specs:
        library = found.scorer.library  # type: ignore[attr-defined]
        loaded = library.task(task, Documents("full"))
        scored, calibrated, every = (
            {document.digest for document in loaded.in_order(Documents(name))}
            for name in (search_split(spec), "calibration", "full")
        )
        if split == "uncalibrated":
            assert not scored & calibrated
            assert scored | calibrated == every
        else:
            assert scored == every


def test_the_replication_of_a_figure_on_every_document_scores_every_document() -> None:
    studies = Path(__file__).parents[2] / "studies"
    assert search_split(parse_spec(read_yaml(studies / "gemma-7b.yaml"), "gemma")) == "full"


def test_too_little_text_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"documents\.calibration_tokens to 128 or more"):
        opened(folder, "aligned", documents={"calibration_tokens": 100})
