"""``mqasearch launch``: files and dry runs; bad input is one line and exit code 2."""

import sys
from pathlib import Path

import pytest
from launching import Mqasearch

from mqasearch.database import parse
from mqasearch.errors import UserError
from mqasearch.launch.fleet import only_here, seconds_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine slrum --storage postgresql://h/d", "did you mean 'slurm'"),
        ("--engine local --storage postgresql://h/d", "mqasearch run"),
        ("--engine slurm", "use PostgreSQL"),
        ("--engine ray --storage sqlite:///x.db", "use PostgreSQL"),
        ("--engine slurm --storage nonsense", "not a URL"),
        ("--engine slurm --storage postgresql://h/d --time soon", "90m"),
        ("--engine slurm --storage postgresql://h/d --time 0m", "90m"),
        ("--engine slurm --storage postgresql://h/d --image x", "for kubernetes"),
        ("--engine kubernetes --storage postgresql://h/d", "--image"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    mqasearch: Mqasearch, options: str, message: str
) -> None:
    code, out, err = mqasearch(f"launch --study-name demo --workers 2 {options}")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "canary" not in err


def test_a_database_that_does_not_answer_is_one_line_and_exit_code_75(
    mqasearch: Mqasearch,
) -> None:
    url = "postgresql://u:canary@127.0.0.1:1/x"
    code, out, err = mqasearch(
        f"launch --study-name demo --workers 2 --engine slurm --storage {url}"
    )
    assert (code, out) == (75, "")
    assert "127.0.0.1:1" in err
    assert err.count("\n") == 1
    assert "canary" not in err


def test_an_unknown_study_is_refused_by_name(mqasearch: Mqasearch, study_url: str) -> None:
    for engine in ("slurm", "kubernetes --image x", "ray"):
        code, _, err = mqasearch(
            f"launch --engine {engine} --study-name dmo --workers 2 --storage {study_url}"
        )
        assert code == 2
        assert "did you mean 'demo'" in err


def test_ray_without_its_extra(mqasearch: Mqasearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = mqasearch(
        "launch --engine ray --study-name demo --workers 2 --storage postgresql://h/d"
    )
    assert code == 2
    assert "pip install 'mqasearch[ray]'" in err


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ("--engine slurm", "mqasearch-demo.sbatch"),
        ("--engine kubernetes --image registry.example/mqasearch:1", "mqasearch-demo.yaml"),
    ],
)
def test_a_dry_run_prints_the_file_that_would_be_written(
    mqasearch: Mqasearch, study_url: str, folder: Path, options: str, file: str
) -> None:
    line = f"launch {options} --study-name demo --workers 2 --storage {study_url} --output-dir out"
    code, printed, dry_err = mqasearch(f"{line} --dry-run")
    assert code == 0
    assert not (folder / "out").exists()
    code, said, err = mqasearch(line)
    assert code == 0
    assert (folder / "out" / file).read_text() == printed
    assert str(Path("out") / file) in said
    assert "OPTUNA_STORAGE" in said
    assert "loopback" in err  # the test's database is on 127.0.0.1
    for text in (printed, said, err, dry_err):
        assert "canary" not in text


def test_a_dry_run_on_ray_says_what_each_worker_gets(mqasearch: Mqasearch, study_url: str) -> None:
    code, out, _ = mqasearch(
        f"launch --engine ray --study-name demo --workers 3 --gpus-per-worker 1 --storage "
        f"{study_url} --dry-run"
    )
    assert code == 0
    assert "3 Ray task(s) {'num_cpus': 1, 'num_gpus': 1}" in out
    assert "--device=cuda:0" in out


@pytest.mark.parametrize("engine", ["ray", "slurm", "kubernetes --image x"])
def test_trust_in_a_models_code_is_handed_on(
    mqasearch: Mqasearch, study_url: str, engine: str
) -> None:
    line = f"launch --engine {engine} --study-name demo --workers 2 --storage {study_url} --dry-run"
    assert "trust" not in mqasearch(line)[1]
    code, out, _ = mqasearch(f"{line} --trust-remote-code")
    assert code == 0
    assert "--trust-remote-code" in out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("4h", 14400), ("2d", 172800), ("00:30:00", 1800), ("1-02:00:01", 93601)],
)
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "4 h", "1:2:3", "01:60:00", "-4h", "٤h", "1-4h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://localhost/x", True),
        ("postgresql://127.0.0.1:5432/x", True),
        ("postgresql://u@/x?host=/run/postgresql", True),
        ("postgresql:///x", True),
        ("postgresql://[::1]/x", True),
        ("postgresql://db.example/x", False),
        ("postgresql://10.0.0.5/x", False),
        ("postgresql://localhost.example/x", False),
    ],
)
def test_databases_that_only_this_machine_finds(url: str, expected: bool) -> None:
    assert only_here(parse(url)) is expected
