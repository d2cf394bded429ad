"""Adds an engine called ``fake`` to the known ones, with a format that it loads."""

from pathlib import Path

import pytest

from mqasearch.engines import EngineKind, engine
from mqasearch.formats import FORMATS, CompactHF, Serving

FAKE = EngineKind("fake", "json", str(Path(__file__).with_name("fake_driver.py")), "fake-engine")


class FakeFormat(CompactHF):
    """Format ``hf`` under another name."""

    name = "fake-format"
    model_types = ("llama",)

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        return (Serving("Fake", "fake FOLDER"),)


def add_fake_engine(monkeypatch: pytest.MonkeyPatch, kind: EngineKind = FAKE) -> None:
    """Add the engine and its format until the test ends."""
    monkeypatch.setattr(engine, "ENGINES", {**engine.ENGINES, kind.name: kind})
    monkeypatch.setattr("mqasearch.formats.FORMATS", {**FORMATS, FakeFormat.name: FakeFormat()})
    monkeypatch.setenv("FAKE_DRIVER_FOLDER", str(engine._DRIVERS))
    monkeypatch.delenv(engine.FOLDER_VARIABLE, raising=False)
