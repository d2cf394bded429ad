"""Engines in processes of their own: what they answer, and what of their faults is told."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from fake_engine import FAKE, add_fake_engine
from processes import below

from mqasearch.engines import Engine, Settings, engine_kind, engine_python
from mqasearch.engines.engine import FOLDER_VARIABLE
from mqasearch.errors import UnknownNameError, UserError

PROMPTS = [[1, 2, 3], [4, 5]]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    add_fake_engine(monkeypatch)


def test_questions_are_answered_though_the_engine_prints_junk() -> None:
    settings = Settings(
        "somewhere",
        dtype="bfloat16",
        max_tokens=7,
        batch_size=2,
        n_threads=3,
        trust_remote_code=True,
    )
    with Engine("fake", settings) as engine:
        assert json.loads(engine.version)["settings"] == {
            "model": "somewhere",
            "dtype": "bfloat16",
            "max_tokens": 7,
            "batch_size": 2,
            "n_threads": 3,
            "trust_remote_code": True,
        }
        assert engine.log_probs(PROMPTS) == [[0.0, 0.0], [0.0]]
        assert engine.generate(PROMPTS, 2) == [[0, 0], [0, 0]]
        timing = engine.time(8, 1, 2)
        assert timing.prefill > 0
        assert timing.decode > 0


@pytest.mark.parametrize(
    ("model", "message"), [("absent", "no model there"), ("deadly", "has no such kernel")]
)
def test_a_model_that_cannot_be_loaded_is_one_line(model: str, message: str) -> None:
    before = below()
    with pytest.raises(UserError, match=message) as raised:
        Engine("fake", Settings(model))
    assert "'fake'" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert below() <= before


def test_an_error_is_told_and_the_engine_goes_on() -> None:
    with Engine("fake", Settings("somewhere")) as engine:
        with pytest.raises(UserError, match="not so many") as raised:
            engine.generate(PROMPTS, 0)
        assert "\n" not in str(raised.value)
        assert engine.generate(PROMPTS, 1) == [[0], [0]]


def test_a_question_that_the_driver_does_not_know_is_an_error() -> None:
    with Engine("fake", Settings("somewhere")) as engine, pytest.raises(UserError, match="psalm"):
        engine._ask("psalm")


def test_the_last_words_of_an_engine_that_dies_are_told() -> None:
    with Engine("fake", Settings("somewhere")) as engine:
        for _ in range(2):
            with pytest.raises(UserError, match="the engine's last words"):
                engine.generate(PROMPTS, -1)


def test_its_processes_end_with_the_block() -> None:
    with Engine("fake", Settings("with a child")) as engine:
        child = psutil.Process(json.loads(engine.version)["child"])
        assert child.is_running()
        parent = child.parent()
    assert not parent.is_running()
    gone, alive = psutil.wait_procs([child], timeout=30)  # init reaps it, in its own time
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], gone


def test_closing_twice_does_no_harm() -> None:
    before = below()
    engine = Engine("fake", Settings("somewhere"))
    assert below() != before
    engine.close()
    engine.close()
    assert below() == before


def test_no_code_of_a_folder_is_trusted_unless_that_is_said() -> None:
    assert not Settings("somewhere").trust_remote_code


def test_an_unknown_engine_is_told_with_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match=r"'vllm'"):
        engine_kind("vlm")
    with pytest.raises(UnknownNameError, match="'transformers'"):
        engine_kind("transformer", also=("transformers",))


def test_an_engine_that_is_not_installed_says_how_to_install_it() -> None:
    missing = replace(FAKE, module="no_such_module_anywhere")
    with pytest.raises(UserError) as raised:
        engine_python(missing)
    message = str(raised.value)
    assert f"{sys.executable} -m pip install fake-engine" in message
    assert "\n" not in message


@pytest.mark.parametrize("given", ["absent/python", "."])
def test_a_python_that_cannot_be_run_is_told(given: str) -> None:
    with pytest.raises(UserError, match="cannot be run"):
        engine_python(FAKE, Path(given))


def test_a_folder_of_engines_is_asked_before_this_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert engine_python(FAKE) == Path(sys.executable)
    own = tmp_path / "fake" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert engine_python(FAKE) == own
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert engine_python(FAKE, other) == other
    own.unlink()
    false = shutil.which("false")
    assert false is not None
    own.symlink_to(false)  # a Python without the engine
    with pytest.raises(UserError, match="not installed"):
        engine_python(FAKE)
