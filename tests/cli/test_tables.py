"""The comparison's table: which documents each number is from, and with what error."""

import io
import re

import optuna
import pytest
from optuna.storages import InMemoryStorage
from rich.console import Console
from studies_on_fake import run_study, spec_of, studies_of

from mqasearch.cli.options import Format
from mqasearch.cli.printed_tables import comparison_table, print_rows
from mqasearch.mask import LayerMask
from mqasearch.record import FACTS_KEY, Storage, confirmation, set_confirmation
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.statistics import Estimate, weighted_mean
from mqasearch.study import ComparisonRow, compare, held_out, parts_of
from mqasearch.study.held_out_values import metric_of

BITS = [{"name": "hellaswag", "metric": "bits_per_byte"}]


def shown(rows: list[ComparisonRow]) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(comparison_table("s", rows))
    return file.getvalue()


def headers_of(rows: list[ComparisonRow]) -> list[str]:
    return [str(column.header) for column in comparison_table("s", rows).columns]


def test_the_value_that_chose_a_mask_stands_beside_the_held_out_one(storage: Storage) -> None:
    scorer = FakeScorer(6)
    run_study(storage, spec_of(tasks=BITS), scorer)
    rows = compare(studies_of(storage))
    headers = headers_of(rows)
    start = headers.index("bits_per_byte\nsearch, n=40")
    assert headers[start : start + 5] == [
        "bits_per_byte\nsearch, n=40",
        "Δ original\nsearch, n=40",
        "bits_per_byte\nheld out, n=80",
        "hellaswag acc_norm\nheld out, n=80",
        "Δ original\n[95 % CI]",
    ]
    text = shown(rows)
    for row in rows:
        kv_heads = LayerMask.parse(row.mask or "").kv_heads(scorer.shape)
        for documents in (Documents("search", 40), Documents("confirmation", 80)):
            score = scorer.score(kv_heads, TaskSpec("hellaswag"), documents)
            metric = "bits_per_byte"
            assert str(Estimate(score.values[metric], score.stderr[metric])) in text
        accuracy = score.values["acc_norm"], score.stderr["acc_norm"]
        assert str(Estimate(*accuracy)) in text
        assert row.delta is not None
        assert Estimate(row.delta, row.delta_stderr).text(signed=True) in text


def test_of_a_distance_to_the_original_the_difference_is_not_shown_again(
    storage: Storage,
) -> None:
    tasks = [{"name": "hellaswag", "metric": "kl"}]
    run_study(storage, spec_of(tasks=tasks, enqueue={"two": [0, 1]}), FakeScorer(6))
    rows = compare(studies_of(storage))
    for row in rows:
        assert (row.delta, row.delta_stderr) == (row.value, pytest.approx(row.stderr))
    headers = headers_of(rows)
    assert "kl\nheld out, n=80" in headers
    assert not any(header.startswith("Δ original\nsearch") for header in headers)


def test_a_search_metric_that_is_the_headline_is_shown_once_per_split(storage: Storage) -> None:
    tasks = [{"name": "hellaswag", "metric": "acc_norm"}]
    run_study(storage, spec_of(tasks=tasks), FakeScorer(6))
    headers = headers_of(compare(studies_of(storage)))
    assert [header for header in headers if "acc_norm" in header] == [
        "acc_norm\nsearch, n=40",
        "hellaswag acc_norm\nheld out, n=80",
    ]


def test_fifteen_layers_and_all_columns_fit_the_width_of_a_log(storage: Storage) -> None:
    enqueue = {"odd": [1, 3]}
    spec = spec_of(budget=[10, 15], selectors=["sensitivity"], enqueue=enqueue, tasks=BITS)
    run_study(storage, spec, FakeScorer(30))
    text = shown(compare(studies_of(storage)))
    lines = text.splitlines()
    assert len(lines) == 3 + 6  # the title, two lines of headers, and no row is folded
    assert "…" not in text


def test_rows_of_different_documents_say_how_many_each_is_of(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["sensitivity"]), FakeScorer(6))
    spec = spec_of(name="longer", selectors=["greedy"], documents={"search": 60})
    run_study(storage, spec, FakeScorer(6))
    rows = compare([*studies_of(storage), *studies_of(storage, "longer")])
    text = shown(rows)
    assert "search, n=" not in text
    assert re.search(r"\d \(n=40\)", text)
    assert re.search(r"\d \(n=60\)", text)


def test_a_study_of_before_errors_were_kept_is_still_shown(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["sensitivity"], tasks=BITS), FakeScorer(6))
    (study,) = studies_of(storage)
    older = optuna.create_study(storage=InMemoryStorage(), study_name=study.study_name)
    for key, value in study.user_attrs.items():
        older.set_user_attr(key, value)
    for trial in study.get_trials():
        for key in ("stderr", "delta_stderr", "stderrs", "n_docs"):
            del trial.user_attrs[FACTS_KEY][key]
        older.add_trial(trial)
    (row,) = compare([older])
    assert (row.stderr, row.delta_stderr, row.n_docs) == (None, None, {})
    assert headers_of([row])[2] == "bits_per_byte\nsearch"
    assert f"{row.value:.4f}" in shown([row])


def test_a_confirmation_of_an_earlier_best_mask_says_nothing_of_this_one(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["sensitivity"]), FakeScorer(6))
    (study,) = studies_of(storage)
    (row,) = compare([study])
    assert row.held_out is not None
    earlier = confirmation(study.user_attrs)
    assert earlier is not None
    set_confirmation(study, {**earlier, "trial_number": earlier["trial_number"] - 1})
    (row,) = compare([study])
    assert (row.held_out, row.confirmed) == (None, {})


@pytest.mark.parametrize("missing", ["value", "n_docs"])
def test_the_held_out_objective_is_the_searchs_on_other_documents(missing: str) -> None:
    spec = {
        "tasks": [
            {"name": "a", "metric": "kl", "weight": 3.0},
            {"name": "b", "metric": "kl", "weight": 1.0},
        ]
    }
    parts = parts_of(spec)
    assert metric_of(parts) == "kl"
    confirmed = {
        "a": {"kl": {"value": 0.2, "stderr": 0.02, "n_docs": 80}, "acc": {"value": 0.5}},
        "b": {"kl": {"value": 0.4, "stderr": 0.01, "n_docs": 50}},
    }
    found = held_out(parts, confirmed)
    mean = weighted_mean([3, 1], [Estimate(0.2, 0.02), Estimate(0.4, 0.01)])
    assert found is not None
    assert (found.value, found.stderr) == (mean.value, mean.stderr)
    assert found.n_docs == {"a": 80, "b": 50}
    del confirmed["b"]["kl"][missing]
    assert held_out(parts, confirmed) is None
    assert held_out(parts, {}) is None


@pytest.mark.parametrize("spec", [{}, {"tasks": "hellaswag"}, {"tasks": [1]}, {"tasks": []}])
def test_a_study_file_that_names_no_tasks_has_no_parts(spec: dict[str, object]) -> None:
    assert parts_of(spec) == ()
    assert metric_of(parts_of(spec)) == "value"


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(["ms [range]"], [["a [bold] study"], [None]], Format.TABLE)
    header, row, nothing = capsys.readouterr().out.splitlines()
    assert header.strip() == "ms [range]"
    assert row.strip() == "a [bold] study"
    assert nothing.strip() == "–"
