"""Mask JSON: what is exported reads back; what does not fit is refused in one line."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.checkpoint.card import model_card
from mqasearch.creation import create_studies
from mqasearch.errors import MaskError, StorageError
from mqasearch.export.mask_json import check_model, read_mask, without_evidence, write_masks
from mqasearch.export.masks import export
from mqasearch.formats import FORMATS
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.record import Storage, model_facts
from mqasearch.record.attributes import MODEL_KEY
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.statistics import Estimate
from mqasearch.study import compare, finished, verdict

SCORER = FakeScorer(6)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    opened = storage_in(tmp_path_factory.mktemp("db"))
    run_study(opened, spec_of(), SCORER)
    yield opened
    opened.close()


@pytest.fixture
def masks(storage: Storage, tmp_path: Path) -> Path:
    path = tmp_path / "masks.json"
    write_masks(export("s", studies_of(storage)), path)
    return path


@pytest.mark.long
def test_every_selectors_best_mask_reads_back(storage: Storage, masks: Path) -> None:
    for row in compare(studies_of(storage)):
        document = read_mask(masks, row.selector)
        assert "".join(map(str, document["mask"])) == row.mask
        assert document["mqa_layers"] == list(row.layers)
        assert document["kv_bytes_per_token"]["converted"] == row.kv_bytes_per_token


def test_the_first_mask_is_the_best(storage: Storage, masks: Path) -> None:
    values = [row.value for row in compare(studies_of(storage)) if row.value is not None]
    best = next(r for r in compare(studies_of(storage)) if r.value == min(values))
    assert read_mask(masks)["mqa_layers"] == list(best.layers)


def test_a_mask_read_back_and_applied_scores_the_same(masks: Path) -> None:
    document = read_mask(masks, "greedy")
    documents = Documents("confirmation", 80)
    kv_heads = tuple(document["kv_heads"])
    score = FakeScorer(6).score(kv_heads, TaskSpec("hellaswag"), documents)
    stored = document["scores"]["hellaswag"]
    assert {metric: row["value"] for metric, row in stored.items()} == dict(score.values)


def test_no_point_of_the_front_is_beaten_by_another(masks: Path) -> None:
    front = json.loads(masks.read_text())["front"]
    assert front[0]["mqa_layers"] == []
    sizes = [point["kv_bytes_per_token"] for point in front]
    values = [point["value"] for point in front]
    assert sizes == sorted(set(sizes), reverse=True)
    assert values == sorted(set(values))


def test_a_mask_says_in_which_dtype_it_was_scored(storage: Storage, masks: Path) -> None:
    (facts, *_) = [model_facts(study.user_attrs) for study in studies_of(storage)]
    assert facts is not None
    document = read_mask(masks)
    assert document["dtype"] == facts.dtype == "float32"
    del document["dtype"]  # as older versions wrote it
    masks.write_text(json.dumps(document))
    assert "dtype" not in read_mask(masks)
    masks.write_text(json.dumps(document | {"dtype": "int3"}))
    with pytest.raises(MaskError, match="dtype: 'int3' is not one of"):
        read_mask(masks)


def test_the_kv_cache_is_counted_in_the_dtype_of_the_workers(tmp_path: Path) -> None:
    """Not in that of the machine that created the study, where ``dtype: auto`` may be another."""
    opened = storage_in(tmp_path)
    elsewhere = replace(SCORER.shape, bytes_per_element=2 * SCORER.shape.bytes_per_element)
    spec = spec_of(selectors=["greedy"], tolerance={"metric": "acc_norm", "points": 5.0})
    create_studies(opened.optuna, spec, elsewhere)
    run_study(opened, spec, SCORER)
    (document,) = export("s", studies_of(opened))["masks"]
    kv_heads = tuple(document["kv_heads"])
    sizes = {"original": SCORER.shape.original, "converted": kv_heads}
    told = {name: SCORER.shape.kv_bytes_per_token(heads) for name, heads in sizes.items()}
    assert document["kv_bytes_per_token"] == told
    verdict_told = verdict(studies_of(opened))
    assert verdict_told is not None
    (size,) = verdict_told.sizes
    assert size.kv_bytes_saved == pytest.approx(1 - told["converted"] / told["original"])
    opened.close()


def test_a_mask_whose_fingerprint_is_of_an_older_method_is_taken_with_a_warning(
    masks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = read_mask(masks)
    document["model"]["fingerprint"] = "a" * 64
    check_model(document, SCORER.shape, "2:" + "b" * 64)
    assert "made by an older mqasearch" in caplog.text
    with pytest.raises(MaskError, match="other weights"):
        check_model(document, SCORER.shape, "b" * 64)
    document["model"]["fingerprint"] = "2:" + "a" * 64
    with pytest.raises(MaskError, match="other weights"):
        check_model(document, SCORER.shape, "2:" + "b" * 64)


def test_every_score_says_its_error_and_its_documents(masks: Path) -> None:
    """Those that chose the mask beside the held-out ones."""
    document = read_mask(masks, "greedy")
    kv_heads, original = tuple(document["kv_heads"]), SCORER.shape.original
    for key, heads, split, limit in (
        ("search_scores", kv_heads, "search", 40),
        ("scores", kv_heads, "confirmation", 80),
        ("baseline", original, "confirmation", 80),
    ):
        documents = Documents(split, limit)  # type: ignore[arg-type]
        score = FakeScorer(6).score(heads, TaskSpec("hellaswag"), documents)
        assert document[key]["hellaswag"] == {
            metric: {
                "value": value,
                "stderr": pytest.approx(score.stderr[metric]),
                "n_docs": limit,
                "split": split,
            }
            for metric, value in score.values.items()
        }


def test_points_of_the_front_have_their_errors(storage: Storage, masks: Path) -> None:
    facts = {row.facts.mask: row.facts for s in studies_of(storage) for row in finished(s)}
    front = json.loads(masks.read_text())["front"]
    for point in front:
        row = facts["".join(map(str, point["mask"]))]
        assert (point["stderr"], point["delta_stderr"]) == (row.stderr, row.delta_stderr)
        assert point["n_docs"] == 40
        assert (point["delta_stderr"] > 0) == bool(point["mqa_layers"])


def test_before_a_mask_is_confirmed_its_scores_are_those_that_chose_it(tmp_path: Path) -> None:
    opened = storage_in(tmp_path)
    spec = spec_of(selectors=["sensitivity"])
    run_study(opened, spec, SCORER, n_trials=8)
    write_masks(export("s", studies_of(opened)), tmp_path / "masks.json")
    document = read_mask(tmp_path / "masks.json")
    assert document["scores"] == document["search_scores"]
    assert {row["n_docs"] for row in document["scores"]["hellaswag"].values()} == {40}
    opened.close()


def test_a_file_of_before_standard_errors_still_reads(tmp_path: Path) -> None:
    """Written by version 0.1: held-out scores alone, and a front of bare values."""
    old = Path(__file__).parent / "masks" / "before_standard_errors.json"
    document = read_mask(old)
    assert "search_scores" not in document
    assert document["scores"]["hellaswag"]["acc"]["split"] == "confirmation"
    write_masks(json.loads(old.read_text()), tmp_path / "again.json")
    assert read_mask(tmp_path / "again.json") == document
    assert "confirmation, 80" in model_card(document, SCORER.shape, FORMATS["hf"], "llama")


def test_the_evidence_that_stays_behind_is_all_of_it(masks: Path) -> None:
    assert not [key for key in without_evidence(read_mask(masks)) if "score" in key]


def test_the_card_shows_both_splits_with_their_errors(masks: Path) -> None:
    document = read_mask(masks)
    card = model_card(document, SCORER.shape, FORMATS["hf"], "llama")
    for key, split in (("scores", "confirmation, 80"), ("search_scores", "search, 40")):
        for row in document[key]["hellaswag"].values():
            shown = re.escape(str(Estimate(row["value"], row["stderr"])))
            assert re.search(rf"{shown} \|.* {split} \|", card)


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    document = read_mask(path)
    edit(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema_version=3), "schema_version 3"),
        (lambda d: d.update(levels=[2]), "levels"),
        (lambda d: d.update(levels=[2, 1]), "levels"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("mask"), "mask"),
        (lambda d: d["mask"].append(1), "7 flags"),
        (lambda d: d["mqa_layers"].pop(), "different layers"),
        (lambda d: d.update(kv_heads=[4] * 6), "kv_heads does not fit"),
        (lambda d: d["mask"].__setitem__(0, 2), "mask"),
    ],
)
def test_a_mask_that_does_not_hold_together_is_refused(
    masks: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(edited(masks, edit))
    assert "\n" not in str(caught.value)


def test_what_is_no_mask_json_is_refused(tmp_path: Path, masks: Path) -> None:
    with pytest.raises(MaskError, match=r"no such file.*mqasearch export"):
        read_mask(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(MaskError, match="line 1, column 2: not JSON"):
        read_mask(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(MaskError, match="expected an object"):
        read_mask(tmp_path / "list.json")
    with pytest.raises(MaskError, match="did you mean 'greedy'"):
        read_mask(masks, "gredy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"schema_version": NaN}', "number NaN is not finite"),
        ('{"schema_version": -1e400}', "number -1e400 is not finite"),
        ('{"schema_version": ' + "9" * 5000 + "}", "not a mask JSON"),
        ('{"schema_version": "' + "x" * 5000 + '"}', "schema_version 'xxx"),
    ],
)
def test_json_that_no_exporter_writes_is_one_short_line(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(tmp_path / "odd.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_whole_number_written_with_a_point_is_a_whole_number(masks: Path) -> None:
    """JSON Schema says so, and some software writes all numbers like that."""
    plain = read_mask(masks)
    with_points = {
        "kv_heads": [float(heads) for heads in plain["kv_heads"]],
        "calibration": {"digest": "", "n_tokens": 1500.0, "seed": 0.0},
        "mqa_layers": [float(layer) for layer in plain["mqa_layers"]],
    }
    document = read_mask(edited(masks, lambda d: d.update(with_points)))
    numbers = [*document["kv_heads"], *document["mqa_layers"]]
    numbers += [document["calibration"]["n_tokens"], document["calibration"]["seed"]]
    assert {type(number) for number in numbers} == {int}
    assert document["kv_heads"] == plain["kv_heads"]


def test_a_path_that_is_a_folder_is_one_line_and_leaves_nothing(
    masks: Path, tmp_path: Path
) -> None:
    document = read_mask(masks)
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MaskError, match="folder: cannot be written") as caught:
        write_masks(document, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_the_selector_of_a_single_mask_is_checked_too(masks: Path, tmp_path: Path) -> None:
    document = read_mask(masks, "greedy")
    write_masks(document, tmp_path / "one.json")
    assert read_mask(tmp_path / "one.json", "greedy") == document
    with pytest.raises(MaskError, match="did you mean 'greedy'"):
        read_mask(tmp_path / "one.json", "gredy")
    del document["study"]
    write_masks(document, tmp_path / "one.json")
    with pytest.raises(MaskError, match="names no selector"):
        read_mask(tmp_path / "one.json", "greedy")


def test_a_mask_of_another_model_is_refused(masks: Path) -> None:
    document = read_mask(masks)
    check_model(document, SCORER.shape, SCORER.model)
    with pytest.raises(MaskError, match="other weights"):
        check_model(document, SCORER.shape, "another")
    longer = ModelShape(7, 8, 4, 16, 128, 2)
    with pytest.raises(MaskError, match="n_layers 6, this model has 7"):
        check_model(document, longer, SCORER.model)


def test_there_is_nothing_to_export_before_a_mask_is_at_the_budget(tmp_path: Path) -> None:
    opened = storage_in(tmp_path)
    create_studies(opened.optuna, spec_of(), SCORER.shape)
    with pytest.raises(StorageError, match="no scored mask at its budget yet; start a worker"):
        export("s", studies_of(opened))
    opened.close()


def test_a_mask_in_a_file_of_its_own_reads_back(masks: Path, tmp_path: Path) -> None:
    document = read_mask(masks, "alternating")
    write_masks(document, tmp_path / "one.json")
    assert read_mask(tmp_path / "one.json") == document
    mask = LayerMask(tuple(flag == 1 for flag in document["mask"]))
    assert tuple(document["kv_heads"]) == mask.kv_heads(SCORER.shape)


def test_a_mask_of_a_calibrated_study_says_how_to_calibrate_again(tmp_path: Path) -> None:
    opened = storage_in(tmp_path)
    merge, documents = {"name": "aligned"}, {"search": 40, "calibration_tokens": 600, "seed": 7}
    spec = spec_of(merge=merge, documents=documents, selectors=["sensitivity"])
    run_study(opened, spec, SCORER)
    for study in studies_of(opened):
        facts = model_facts(study.user_attrs)
        assert facts is not None
        study.set_user_attr(MODEL_KEY, asdict(replace(facts, calibration="c" * 64)))

    write_masks(export("s", studies_of(opened)), tmp_path / "masks.json")

    mask = read_mask(tmp_path / "masks.json")
    assert mask["merge"] == merge
    assert mask["calibration"] == {
        "digest": "c" * 64,
        "tasks": [{"name": "hellaswag", "num_fewshot": 0}],
        "n_tokens": 600,
        "seed": 7,
    }
    opened.close()
