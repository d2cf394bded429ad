"""What ``create`` makes, and what it refuses: studies on the fake scorer."""

import optuna
import pytest
from studies_on_fake import run_study, spec_of

from mqasearch.creation import create as create_module
from mqasearch.creation import create_studies
from mqasearch.errors import SpecError, StorageError, UserError
from mqasearch.record import Storage
from mqasearch.scoring import FakeScorer
from mqasearch.study import find_studies, open_selections
from mqasearch.worker import create


def test_creating_again_changes_nothing(storage: Storage) -> None:
    shape = FakeScorer(6).shape
    names = create_studies(storage.optuna, spec_of(), shape)
    assert create_studies(storage.optuna, spec_of(), shape) == names
    selections = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert [len(selection.tasks()) for selection in selections] == [1] * 4


def test_an_empty_study_of_somebody_else_is_left_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create_module, "_PATIENCE_SECONDS", 0.2)
    optuna.create_study(study_name="s.greedy", storage=storage.optuna)
    with pytest.raises(UserError, match="not made by mqasearch"):
        create_studies(storage.optuna, spec_of(selectors=["greedy"]), FakeScorer(6).shape)


def test_a_study_whose_creator_died_is_finished_by_the_next_one(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    spec, shape = spec_of(selectors=["greedy"]), FakeScorer(6).shape
    with monkeypatch.context() as patched:
        patched.setattr(create_module, "set_study_facts", die)
        with pytest.raises(KeyboardInterrupt):
            create_studies(storage.optuna, spec, shape)
    monkeypatch.setattr(create_module, "_PATIENCE_SECONDS", 0.2)
    create_studies(storage.optuna, spec, shape)
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert [task.name for task in selection.tasks()] == ["original"]


def test_a_new_study_takes_nothing_over_from_a_deleted_one(storage: Storage) -> None:
    """SQLite gives the number of the newest study again."""
    spec = spec_of(selectors=["greedy"])
    run_study(storage, spec, FakeScorer(6))
    optuna.delete_study(study_name="s.greedy", storage=storage.optuna)
    create_studies(storage.optuna, spec, FakeScorer(6).shape)
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert [task.state for task in selection.tasks()] == ["queued"]


def test_two_names_for_one_mask_are_refused(storage: Storage) -> None:
    spec = spec_of(selectors=[], enqueue={"one": [0, 1], "other": [1, 0]})
    with pytest.raises(SpecError, match=r"enqueue.other: the same layers as one"):
        create_studies(storage.optuna, spec, FakeScorer(6).shape)


def test_another_spec_under_the_same_name_is_refused_with_the_difference(storage: Storage) -> None:
    shape = FakeScorer(6).shape
    create_studies(storage.optuna, spec_of(), shape)
    with pytest.raises(UserError, match=r"another spec .*seed: 0 → 1") as caught:
        create_studies(storage.optuna, spec_of(seed=1), shape)
    assert "\n" not in str(caught.value)


def test_a_study_of_somebody_else_is_left_alone(storage: Storage) -> None:
    study = optuna.create_study(study_name="s.greedy", storage=storage.optuna)
    study.enqueue_trial({"x": 1.0})
    with pytest.raises(UserError, match="not made by mqasearch"):
        create_studies(storage.optuna, spec_of(selectors=["greedy"]), FakeScorer(6).shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 7}, "7 layers cannot be met by a model of 6 layers"),
        ({"kv_heads": 3}, "3 does not divide"),
        ({"kv_heads": 4}, "4 KV head"),
        ({"enqueue": {"odd": [1, 9]}}, r"enqueue.odd: layers \[9\]"),
        (
            {"selectors": [{"name": "greedy", "n_trials": 8}]},
            "greedy: with n_trials 8 it ends before its first mask of 3 layers; give 9 or more, or",
        ),
        ({"documents": {"calibration_tokens": 50}}, "50 are too few for the refit of this model"),
    ],
)
def test_a_spec_that_does_not_fit_the_model_is_refused(
    storage: Storage, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        create_studies(storage.optuna, spec_of(**changes), FakeScorer(6).shape)


def test_an_unknown_study_is_answered_with_the_nearest_name(storage: Storage) -> None:
    with pytest.raises(StorageError, match="holds none"):
        find_studies(storage.optuna, "s")
    create_studies(storage.optuna, spec_of(), FakeScorer(6).shape)
    with pytest.raises(StorageError, match=r"did you mean 's\.greedy'"):
        find_studies(storage.optuna, "s.gredy")


def test_a_selector_that_cannot_take_on_the_model_is_refused_when_the_study_is_made(
    storage: Storage,
) -> None:
    spec = spec_of(selectors=["exhaustive"], budget=12)
    with pytest.raises(SpecError, match=r"exhaustive: there are 5,586,853,480 masks .* 'greedy'"):
        create_studies(storage.optuna, spec, FakeScorer(40).shape)


def test_a_mask_that_is_the_original_is_not_enqueued(storage: Storage) -> None:
    with pytest.raises(SpecError, match=r"enqueue\.none: names no layer"):
        create(storage, spec_of(model="fake:12", selectors=[], enqueue={"none": []}))
    assert not storage.optuna.get_all_studies()
