"""``tolerance`` and ``budget: auto`` on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import run_here

STUDY: dict[str, Any] = {
    "name": "s",
    "model": "fake:6",
    "budget": "auto",
    "tasks": ["hellaswag"],
    "documents": {"search": 20, "confirmation": 400},
    "selectors": ["sensitivity"],
    "tolerance": {"metric": "acc_norm", "points": 5},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)


def run(monkeypatch: pytest.MonkeyPatch, line: str, **changes: Any) -> int:
    Path("s.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return run_here(line, monkeypatch)


@pytest.mark.long
def test_a_run_ends_with_the_verdict_in_the_table_and_in_every_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run s.yaml") == 0
    out = capsys.readouterr().out
    documents = [json.loads(Path(f"s-n{n}.masks.json").read_text()) for n in (1, 2, 3, 4)]
    (sentence,) = {document["verdict"]["sentence"] for document in documents}
    assert sentence in out.splitlines()
    assert run(monkeypatch, "compare --study-name s-n2") == 0
    assert sentence in capsys.readouterr().out.splitlines()
    assert run(monkeypatch, "export --study-name s-n2 -o one.json") == 0
    assert json.loads(Path("one.json").read_text())["verdict"] == documents[0]["verdict"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance": {"metric": "acc_nrm", "points": 1}}, "did you mean 'acc_norm'"),
        ({"tolerance": {"metric": "acc_norm", "points": 0}}, "greater than 0"),
        ({"tolerance": {"metric": "acc_norm", "points": 0.5}}, "documents.confirmation 598"),
        ({"documents": {"confirmation": 0}}, "documents.confirmation: 0"),
        ({"documents": {"search": "full"}}, "documents.search: full"),
    ],
)
def test_what_can_never_be_shown_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    assert run(monkeypatch, "create s.yaml", **changes) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, len(err.splitlines())) == ("", 1)
