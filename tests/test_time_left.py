"""Long work says how far it is; short work says nothing."""

import logging
from types import SimpleNamespace

import pytest

from mqasearch import time_left
from mqasearch.time_left import TimeLeft

LOG = logging.getLogger("tests.time_left")


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: self.now))


def told(clock: Clock, log: pytest.LogCaptureFixture, step: float, n: int) -> list[str]:
    """What work of ``n`` steps says."""
    log.set_level("INFO", logger=LOG.name)
    log.clear()
    left = TimeLeft(LOG, "work")
    for done in range(1, n + 1):
        clock.now += step
        left(done, n)
    return log.messages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_short_work_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert told(clock, caplog, 0.29, 100) == []
    assert told(clock, caplog, 100, 1) == []


def test_at_an_even_pace_the_time_left_is_right(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert told(clock, caplog, 10, 10) == [
        "work: 30 %, about 70 s left",
        "work: 60 %, about 40 s left",
        "work: 90 %, about 10 s left",
    ]
    assert told(clock, caplog, 60, 4) == [
        "work: 25 %, about 3 min left",
        "work: 50 %, about 2 min left",
        "work: 75 %, about 60 s left",
    ]
