"""The default study of a model, and a study as text."""

from pathlib import Path

import pytest
import yaml

from mqasearch.creation.model_study import default_study, study_name
from mqasearch.creation.names import checked_study, load_study
from mqasearch.spec import parse_spec, study_text

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_reads_back_from_its_text(path: Path) -> None:
    spec = load_study(path)
    text = study_text(spec, "a study")
    assert text.startswith("# a study\n")
    assert checked_study(yaml.safe_load(text), "text") == spec


def test_a_text_says_defaults_too_so_that_it_means_the_same_when_they_change() -> None:
    text = study_text(default_study("fake:6", {}), "x")
    for key in ("metric", "search", "confirmation", "merge", "seed", "n_masks", "dtype"):
        assert f"{key}: " in text
    assert "null" not in text.replace("(null: all)", "")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("Owner/Name-1.5B", "Name-1.5B"),
        ("fake:12:0.2", "fake-12-0.2"),
        ("/nowhere/my model.gguf", "my-model"),
        ("x/" + "y" * 200, "y" * 80),
        ("/nowhere/…", "model"),
    ],
)
def test_a_study_is_called_after_its_model(model: str, name: str) -> None:
    assert study_name(model) == name
    parse_spec({"name": name, "model": "m", "budget": 1, "tasks": ["t"], "selectors": ["s"]}, "x")


def test_the_working_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint-100")
    assert study_name(".") == "checkpoint-100"


def test_a_hub_id_goes_the_same_way() -> None:
    spec = default_study("owner/name", {"model": {"revision": "r", "trust_remote_code": True}})
    assert (spec.name, spec.model.name) == ("name", "owner/name")
    assert (spec.model.revision, spec.model.trust_remote_code) == ("r", True)
