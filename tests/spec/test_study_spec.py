"""The study file: friendly at the door, every fault at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mqasearch.errors import SpecError
from mqasearch.mask import ModelShape
from mqasearch.score import TaskSpec
from mqasearch.spec.study_spec import named_entries, parse_spec
from mqasearch.spec.yaml_text import read_yaml

GOOD: dict[str, Any] = {
    "name": "s",
    "model": "smollm2-135m",
    "budget": 2,
    "tasks": ["hellaswag"],
    "selectors": ["greedy"],
}


def faults(data: object) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse_spec(data, "s.yaml")
    return caught.value.faults


def test_bare_values_are_accepted_where_a_mapping_is_meant() -> None:
    spec = parse_spec(GOOD, "s.yaml")
    assert spec.model.name == "smollm2-135m"
    assert spec.budget[0].n_layers == 2
    assert spec.task_specs == (TaskSpec("hellaswag", limit=32),)
    assert spec.merge.name == "aligned"


def test_a_stored_spec_reads_back_as_itself() -> None:
    data = GOOD | {"selectors": [{"name": "greedy", "lazy": False, "n_trials": 3}]}
    spec = parse_spec(data, "s.yaml")
    again = parse_spec(spec.model_dump(mode="json"), "stored")
    assert again == spec
    assert again.selectors[0].parameters == {"lazy": False}


def test_all_faults_are_reported_at_once() -> None:
    data = GOOD | {"budgets": 3, "seed": "x", "tasks": [{"name": "piqa", "limits": 5}]}
    rows = faults(data)
    assert len(rows) == 3
    assert any("unknown key 'budgets': did you mean 'budget'?" in row for row in rows)
    assert any("unknown key 'limits': did you mean 'limit'?" in row for row in rows)
    assert any(row.startswith("seed: ") and "'x'" in row for row in rows)


def test_entries_with_names_are_found_in_a_file_with_other_faults() -> None:
    data = GOOD | {"tasks": ["piqa", 7, {"name": "arc", "limit": 0}], "seed": "x", "merge": "mean"}
    data["selectors"] = "greedy"  # not a list
    found = [(path, entry.name) for path, entry in named_entries(data)]
    assert found == [
        ("model.name", "smollm2-135m"),
        ("merge", "mean"),
        ("tasks.0", "piqa"),
        ("tasks.2", "arc"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget.0.n_layers"),
        ({"budget": {"n_layers": 2, "kv_bytes_fraction": 0.5}}, "exactly one"),
        ({"budget": [2, 2]}, "n2 given twice"),
        ({"selectors": []}, "at least one selector"),
        ({"selectors": ["greedy", "greedy"]}, "greedy given twice"),
        ({"name": "a b"}, "name"),
        ({"tasks": []}, "tasks"),
    ],
)
def test_a_bad_value_is_one_line_that_says_where(change: dict[str, Any], message: str) -> None:
    rows = faults(GOOD | change)
    assert len(rows) == 1
    assert message in rows[0]
    assert "\n" not in rows[0]


def test_several_budgets_are_one_comparison_each() -> None:
    spec = parse_spec(GOOD | {"budget": [2, {"kv_bytes_fraction": 0.5}]}, "s.yaml")
    assert list(spec.comparisons()) == ["s-n2", "s-kv50"]
    assert [one.budget for one in spec.comparisons().values()] == [[b] for b in spec.budget]


def test_full_documents_leave_nothing_to_confirm_on() -> None:
    spec = parse_spec(GOOD | {"documents": {"search": "full"}}, "s.yaml")
    assert spec.documents.search == "full"
    assert spec.task_specs[0].limit is None


def test_a_file_that_is_not_yaml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: [\n")
    with pytest.raises(SpecError, match=r"line 2, column 1: not YAML"):
        parse_spec(read_yaml(path), str(path))
    with pytest.raises(SpecError, match=r"did you mean .*s\.yaml"):
        read_yaml(tmp_path / "t.yaml")
    path.write_text("just text")
    with pytest.raises(SpecError, match="expected keys"):
        parse_spec(read_yaml(path), str(path))


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['true']", "a: !!python/name:os.system"]
)
def test_yaml_cannot_run_code(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match="not YAML"):
        parse_spec(read_yaml(path), str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2024-13-45\n", "month must be in 1..12"),
        ("seed: " + "9" * 5000, "digits"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("budget: 5\nname: x\nbudget: 3\n", r"line 3, column 1: key 'budget' is given twice"),
        ("\x80", "not a text file"),
    ],
)
def test_what_yaml_itself_stumbles_over_is_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "s.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=message) as caught:
        read_yaml(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 10**30}, r"seed: .*\b4294967296\b"),
        ({"seed": -1}, r"seed: .*\b0\b"),
        ({"documents": {"seed": 10**30}}, r"documents\.seed: .*\b4294967296\b"),
        ({"documents": {"search": 1}}, r"documents\.search: .*\b2, not 1$"),
        ({"documents": {"search": "ful"}}, r"documents\.search: .*'full', not 'ful'$"),
        ({"budget": "5"}, "budget.*: .*number of layers"),
        ({"merge": 3}, "merge: expected a name"),
        ({"enqueue": {"original": [1]}}, "enqueue: .*the original"),
        ({"pruner": "wilcoxn"}, r"pruner\.name: .*'wilcoxn'.*did you mean 'wilcoxon'"),
        ({"pruner": "paired_mean", "tasks": ["piqa", "copa"]}, "pruner: .*one task"),
    ],
)
def test_what_no_study_can_hold_is_said_in_words(changes: dict[str, object], message: str) -> None:
    data = {"name": "s", "model": "m", "budget": 2, "tasks": ["piqa"], "selectors": ["greedy"]}
    with pytest.raises(SpecError, match=f"^s.yaml: .*{message}"):
        parse_spec(data | changes, "s.yaml")


def test_budgets_that_are_nearly_the_same_have_names_of_their_own() -> None:
    data = {"name": "s", "model": "m", "tasks": ["piqa"], "selectors": ["greedy"]}
    budgets = [{"kv_bytes_fraction": 0.601}, {"kv_bytes_fraction": 0.604}]
    spec = parse_spec(data | {"budget": budgets}, "s.yaml")
    assert list(spec.comparisons()) == ["s-kv60.1", "s-kv60.4"]


@pytest.mark.parametrize("pruner", ["wilcoxon", {"name": "wilcoxon", "p_threshold": 0.05}])
def test_the_pruner_of_older_study_files_still_opens_and_is_the_one_of_today(
    pruner: object,
) -> None:
    old = parse_spec(GOOD | {"pruner": pruner}, "s.yaml")
    today = yaml.safe_load(yaml.safe_dump(pruner).replace("wilcoxon", "paired_mean"))
    assert old == parse_spec(GOOD | {"pruner": today}, "s.yaml")


def tolerant(tolerance: object, **changes: object) -> dict[str, Any]:
    return GOOD | {"tolerance": tolerance} | changes


def test_a_tolerance_may_be_one_or_several_and_reads_back_as_itself() -> None:
    one = {"metric": "acc_norm", "points": 1}
    spec = parse_spec(tolerant(one), "s.yaml")
    assert spec.tolerance[0].margin == 0.01
    assert parse_spec(tolerant([one]), "s.yaml") == spec
    assert parse_spec(spec.model_dump(mode="json"), "stored") == spec
    assert parse_spec(GOOD, "s.yaml").tolerance == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tolerant({"metric": "acc_norm", "points": 0}), "tolerance.0.points: .*greater than 0"),
        (tolerant({"metric": "acc_norm", "points": -1}), "tolerance.0.points: .*greater than 0"),
        (tolerant({"metric": "acc_norm", "points": float("inf")}), "finite number"),
        (tolerant({"metric": "acc_norm"}), "tolerance.0.points: missing"),
        (tolerant({"metric": "acc_norm", "points": 1, "taks": "x"}), "did you mean 'task'"),
        (tolerant("acc_norm"), r"expected \{metric, points\}"),
        (
            tolerant({"metric": "acc_norm", "points": 1}, documents={"search": "full"}),
            "with documents.search: full nothing is held out",
        ),
        (
            tolerant({"metric": "acc_norm", "points": 1}, documents={"confirmation": 0}),
            "with documents.confirmation: 0 nothing is held out",
        ),
        (
            tolerant({"metric": "acc_norm", "points": 1}, selectors=[], enqueue={"last": [3]}),
            "name a selector",
        ),
        (GOOD | {"documents": {"confirmation": 1}}, "give 2 or more, or 0 for none"),
        (GOOD | {"budget": []}, "at least one budget, or auto"),
        (GOOD | {"budget": "most"}, "or auto"),
    ],
)
def test_what_can_never_be_shown_is_refused_in_one_line(data: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_spec(data, "s.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_layers", [1, 2, 5, 12, 30, 126])
def test_automatic_budgets_grow_and_leave_layers_unconverted(n_layers: int) -> None:
    spec = parse_spec(GOOD | {"budget": "auto"}, "s.yaml")
    assert parse_spec(spec.model_dump(mode="json"), "stored") == spec
    sized = spec.with_sizes(ModelShape(n_layers, 8, 4, 16, 128, 2))
    sizes = [entry.n_layers or 0 for entry in sized.budget]
    assert sizes == sorted(set(sizes))
    assert 1 <= sizes[0] <= sizes[-1] <= max(1, n_layers - 1)
    assert sized.with_sizes(ModelShape(99, 8, 4, 16, 128, 2)) == sized
    assert len(sized.comparisons()) == len(sizes)


def test_kv_heads_are_numbers_in_ascending_order() -> None:
    several = GOOD | {"budget": {"kv_bytes_fraction": 0.5}, "kv_heads": [4, 1, 2]}
    assert parse_spec(several, "s.yaml").kv_heads == [1, 2, 4]
    assert parse_spec(GOOD | {"kv_heads": 2}, "s.yaml").kv_heads == [2]
    assert parse_spec(GOOD, "s.yaml").kv_heads == [1]
    older = parse_spec(GOOD | {"target_kv_heads": 2}, "s.yaml")
    assert older == parse_spec(GOOD | {"kv_heads": [2]}, "s.yaml")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kv_heads": [1, 2]}, "budget: with several kv_heads a number of layers says little"),
        ({"kv_heads": [2, 2]}, "kv_heads: 2 given twice"),
        ({"kv_heads": []}, "kv_heads"),
        ({"kv_heads": [0]}, "kv_heads"),
        ({"budget": {"kv_bytes_fraction": "3/2"}}, "budget"),
        ({"budget": {"kv_bytes_fraction": "1/0"}}, "budget"),
        ({"kv_heads": 1, "target_kv_heads": 1}, "unknown key 'target_kv_heads'"),
    ],
)
def test_faults_of_kv_heads(changes: dict[str, object], fault: str) -> None:
    (row,) = faults(GOOD | changes)
    assert fault in row


def test_a_share_of_the_cache_may_be_a_quotient() -> None:
    data = GOOD | {"budget": [{"kv_bytes_fraction": "1/3"}, {"kv_bytes_fraction": 0.5}]}
    spec = parse_spec(data, "s.yaml")
    assert [entry.kv_bytes_fraction for entry in spec.budget] == [1 / 3, 0.5]
    assert parse_spec(spec.model_dump(mode="json"), "stored") == spec


def test_auto_means_shares_of_the_cache_if_there_are_several_kv_heads() -> None:
    spec = parse_spec(GOOD | {"budget": "auto", "kv_heads": [1, 2, 4]}, "s.yaml")
    shape = ModelShape(32, 32, 8, 128, 4096, 2)
    sized = spec.with_sizes(shape)
    assert [entry.kv_bytes_fraction for entry in sized.budget] == [0.75, 0.5, 0.375, 0.25]
