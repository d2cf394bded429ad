"""The original's states are computed in batches, and a long reading says how far it is."""

from types import SimpleNamespace

import pytest
import torch

from mqasearch import time_left
from mqasearch.conversion import calibration_batches
from mqasearch.families import family_of
from mqasearch.healing import teacher
from mqasearch.models import ResumableModel
from tests.conversion.calibrated import texts
from tests.tiny import tiny_model


def test_a_long_reading_says_how_far_it_is_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    model = tiny_model("llama").eval()
    resumable = ResumableModel(model, family_of("llama").blocks(model))
    batches = [*calibration_batches(model, texts(32), None, 64)] * 2

    with caplog.at_level("INFO", teacher.__name__):
        lessons = teacher.lessons(resumable, batches, 1, torch.device("cpu"))

    assert len(lessons) == len(batches) == 10
    assert caplog.messages == [
        f"the original reads the text to heal on: {percent} %, about {left} s left"
        for percent, left in ((30, 70), (60, 40), (90, 10))
    ]
