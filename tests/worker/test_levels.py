"""A search for KV heads per layer, from the study file to the mask JSON, on the fake scorer."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.budget import DecodeTimes
from mqasearch.creation import create_studies
from mqasearch.dashboard.pages import comparison_page, figures_json
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.errors import SpecError
from mqasearch.export import export, read_mask, write_masks
from mqasearch.latency import TimeBudget, time_budget
from mqasearch.mask import LayerMask
from mqasearch.record import Storage, study_facts
from mqasearch.scoring import FakeScorer
from mqasearch.study import Selection, compare, find_studies, open_selections, study_rows

SEVERAL: dict[str, Any] = {
    "kv_heads": [1, 2, 4],
    "budget": {"kv_bytes_fraction": 0.5},
    "selectors": [
        "sensitivity",
        "greedy",
        {"name": "gp", "n_masks": 4},
        {"name": "evolution", "n_trials": 8},
        {"name": "tpe", "n_trials": 12},
        {"name": "random", "n_trials": 6},
    ],
}


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer(5, n_kv_heads=8, noise=0.0)


@pytest.fixture
def storage(tmp_path: Path, scorer: FakeScorer) -> Storage:
    found = storage_in(tmp_path)
    run_study(found, spec_of(**SEVERAL), scorer)
    return found


def test_every_selector_ends_with_a_mask_at_the_budget_in_bytes(
    storage: Storage, scorer: FakeScorer
) -> None:
    rows = compare(studies_of(storage))
    assert [row.selector for row in rows] == [
        "sensitivity", "greedy", "gp", "evolution", "tpe", "random",
    ]  # fmt: skip
    half = scorer.shape.kv_bytes_per_token(scorer.shape.original) / 2
    for row in rows:
        assert row.kv_bytes_per_token is not None
        assert row.kv_bytes_per_token <= half
        assert row.kv_bytes_per_token == scorer.shape.kv_bytes_per_token(row.kv_heads)
        assert set(row.kv_heads) <= {1, 2, 4, 8}
        assert row.confirmed


def test_parameters_are_numbers_of_heads_and_probes_are_pruned(storage: Storage) -> None:
    for study in studies_of(storage):
        facts = study_facts(study.user_attrs)
        assert facts is not None
        for trial in study.trials:
            kv_heads = tuple(trial.params[f"layer_{layer:02d}"] for layer in range(5))
            mask = trial.user_attrs["mqasearch:mask"]
            assert kv_heads == facts.kv_heads(mask)
            assert set(kv_heads) <= {1, 2, 4, 8}
            is_complete = trial.state == TrialState.COMPLETE
            assert is_complete == facts.space.is_at_budget(LayerMask.parse(mask))
            assert next(iter(trial.distributions.values())).choices == (1, 2, 4, 8)


def test_masks_json_has_the_heads_the_levels_and_the_front(
    storage: Storage, tmp_path: Path
) -> None:
    document = export("s", studies_of(storage))
    path = tmp_path / "masks.json"
    write_masks(document, path)
    best = read_mask(path)
    assert (best["schema_version"], best["levels"]) == (2, [1, 2, 4])
    assert best["budget"] == {"kv_bytes_fraction": 0.5}
    assert best["mask"] == [int(heads < 8) for heads in best["kv_heads"]]
    front = document["front"]
    assert [row["kv_bytes_per_token"] for row in front] == sorted(
        (row["kv_bytes_per_token"] for row in front), reverse=True
    )
    assert front[0]["kv_heads"] == [8] * 5
    assert len(front) > 5


def test_version_1_is_still_read(storage: Storage, tmp_path: Path) -> None:
    document = export("s", studies_of(storage))
    document["schema_version"] = 1
    for mask in document["masks"]:
        mask["schema_version"] = 1
        del mask["levels"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    assert read_mask(path)["kv_heads"] == document["masks"][0]["kv_heads"]


def test_the_dashboard_shows_numbers_of_heads(storage: Storage) -> None:
    (comparison,) = read_comparisons(storage.optuna)
    page = comparison_page(comparison).decode()
    assert "50 % of the KV cache, with 1, 2, 4 KV heads in a converted layer" in page
    figures = {
        row["key"]: row["figure"] for row in json.loads(figures_json(comparison, (comparison,)))
    }
    names = {trace.get("name") for trace in figures["mqasearch-sensitivity"]["data"]}
    assert {"this layer alone, 4 KV heads", "this layer alone, 1 KV heads"} <= names
    front, *bests = figures["mqasearch-front"]["data"]
    assert front["x"] == sorted(front["x"])
    assert [trace["name"] for trace in bests] == [s.selector for s in comparison.studies]
    heatmap = next(figure for key, figure in figures.items() if "-masks-" in key)["data"][0]
    assert {cell for row in heatmap["z"] for cell in row} == {0, 1, 2, 3}


def test_status_names_layers_by_their_heads(storage: Storage) -> None:
    best = [row[-1] for row in study_rows(storage.optuna, "s")]
    assert all("head" in words for words in best)


def test_several_workers_find_what_one_finds(scorer: FakeScorer, tmp_path: Path) -> None:
    """Each call is a worker of its own that runs a few trials."""
    folders = [tmp_path / name for name in ("one", "many")]
    for folder in folders:
        folder.mkdir()
    alone, together = map(storage_in, folders)
    spec = spec_of(**SEVERAL | {"selectors": ["sensitivity", "greedy"]})
    run_study(alone, spec, scorer)
    while run_study(together, spec, scorer, n_trials=7):
        pass
    assert [row.mask for row in compare(studies_of(together))] == [
        row.mask for row in compare(studies_of(alone))
    ]


def test_masks_are_enqueued_with_their_heads(scorer: FakeScorer, tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    spec = spec_of(**SEVERAL | {"selectors": [], "enqueue": {"mine": {4: [0, 1], 1: [4]}}})
    run_study(storage, spec, scorer)
    rows = {row.selector: row for row in compare(studies_of(storage))}
    assert rows["mine"].kv_heads == (4, 4, 8, 8, 1)
    assert rows["mine"].words == "4 heads: 0,1; 1 head: 4"


def test_a_trial_enqueued_in_optuna_with_some_layers_is_brought_to_the_budget(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    storage = storage_in(tmp_path)
    spec = spec_of(**SEVERAL | {"selectors": [{"name": "random", "n_trials": 4}]})
    create_studies(storage.optuna, spec, scorer.shape)
    (study,) = studies_of(storage)
    study.enqueue_trial({"layer_00": 2, "layer_03": 8})
    run_study(storage, spec, scorer)
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert isinstance(selection, Selection)
    named = [LayerMask.parse(task.mask) for task in selection.tasks() if task.name == "trial 0"]
    assert [mask.levels[0] for mask in named] == [2]
    assert [mask.levels[3] for mask in named] == [0]
    assert all(map(selection.space.is_at_budget, named))
    assert Counter(task.state for task in selection.tasks())["complete"] >= 3


ONE = {8: 80.0, 1: 28.0}
TIMES: dict[str, Any] = {
    "context": 2048,
    "batch_size": 4,
    "ms": {8: 80.0, 4: 50.0, 2: 35.0, 1: 28.0},
}


@pytest.mark.parametrize("given", [{"decode_ms": 40.0}, {"decode_fraction": "1/2"}])
@pytest.mark.parametrize("numbers", [[1], [1, 2, 4]])
def test_every_selector_reaches_a_decoding_time(
    scorer: FakeScorer, tmp_path: Path, numbers: list[int], given: dict[str, Any]
) -> None:
    storage = storage_in(tmp_path)
    budget = {**given, "latency": TIMES}
    spec = spec_of(**SEVERAL | {"kv_heads": numbers, "budget": budget})
    run_study(storage, spec, scorer)
    rows = compare(studies_of(storage))
    assert len(rows) == len(SEVERAL["selectors"])
    chosen = spec.budget[0].budget
    for row in rows:
        excess = chosen.excess(row.kv_heads, scorer.shape)
        assert excess <= 1e-9
        for layer, heads in enumerate(row.kv_heads):  # no layer could go back
            if len(numbers) == 1 and heads < 8:
                back = (*row.kv_heads[:layer], 8, *row.kv_heads[layer + 1 :])
                assert chosen.excess(back, scorer.shape) > 0
    (comparison,) = read_comparisons(storage.optuna)
    words = comparison_page(comparison).decode()
    assert "40 ms per token" in words
    assert ("layers are converted for 40 ms" in words) == (len(numbers) == 1)
    path = tmp_path / "masks.json"
    write_masks(export("s", studies_of(storage)), path)
    assert time_budget(read_mask(path)) == TimeBudget(
        40.0, DecodeTimes(2048, 4, TIMES["ms"]), "decode_fraction" in given
    )


def test_a_time_and_a_number_of_layers_that_mean_the_same_give_the_same_masks(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    budgets = [2, {"decode_ms": 80 - 2 / 5 * 52, "latency": TIMES}]
    spec = spec_of(budget=budgets)
    storage = storage_in(tmp_path)
    run_study(storage, spec, scorer)
    by_layers, by_time = (
        {row.selector: row.mask for row in compare(studies_of(storage, name))}
        for name in spec.comparisons()
    )
    assert by_layers == by_time


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kv_heads": [1, 3]},
            "kv_heads: 3 does not divide the model's 8 KV heads; possible: 1, 2",
        ),
        ({"kv_heads": [4, 8]}, "kv_heads: the model has 8 KV head.* already; .* possible: 1, 2, 4"),
        (
            {"budget": {"kv_bytes_fraction": 0.1}},
            r"with 1 KV head\(s\) in every layer, 0.125 of the cache is left; choose that much",
        ),
        (
            {"budget": {"decode_ms": 20, "latency": TIMES}},
            r"budget: 20 ms per token cannot be met by .* at context 2048, batch size 4 it t",
        ),
        (
            {"kv_heads": [1, 4], "budget": {"decode_ms": 40, "latency": {**TIMES, "ms": ONE}}},
            "budget: no time was measured with 4 KV heads",
        ),
        ({"selectors": ["alternating"]}, "alternating: .* does not choose among several kv_heads"),
        ({"enqueue": {"x": [1]}}, r"enqueue.x: say how many KV heads the layers get: \{1: \[1\]\}"),
        ({"enqueue": {"x": {3: [1]}}}, "enqueue.x: 3 is not one of the study's kv_heads: 1, 2, 4"),
        ({"enqueue": {"x": {1: [1], 2: [1]}}}, r"enqueue.x: layers \[1\] get two numbers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    scorer: FakeScorer, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        create_studies(storage_in(tmp_path).optuna, spec_of(**SEVERAL | changes), scorer.shape)
