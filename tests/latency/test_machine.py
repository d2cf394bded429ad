"""Clocks and meters on the CPU."""

import gc
import time
from pathlib import Path

import pytest
import torch

from mqasearch.latency import machine
from mqasearch.latency.machine import (
    Bandwidth,
    available_bytes,
    device_name,
    no_collection,
    peak_growth,
    seconds,
)

CPU = torch.device("cpu")


def test_time_is_time() -> None:
    assert seconds(CPU, lambda: time.sleep(0.02)) >= 0.02


def test_what_is_held_for_a_moment_is_seen() -> None:
    size = 2**27
    growth = peak_growth(CPU, lambda: torch.ones(size // 4).sum())
    assert growth is None or growth >= 0.9 * size


def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(2**25)
    growth = peak_growth(CPU, lambda: held.sum())
    assert growth is None or growth < held.nbytes / 2


def test_no_record_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    done: list[bool] = []
    assert peak_growth(CPU, lambda: done.append(True)) is None
    assert done == [True]


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_comes_back(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_bytes", [1, 2**22 + 12345])
def test_bandwidth_is_the_fastest_runs(
    dtype: torch.dtype, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "MIN_BUFFER_BYTES", 2**20)
    bandwidth = Bandwidth(CPU, dtype, n_bytes)
    assert bandwidth.bytes_per_second == 0
    best = 0.0
    for _ in range(3):
        bandwidth.sample()
        assert bandwidth.bytes_per_second >= best
        best = bandwidth.bytes_per_second
    assert best == bandwidth.rates[bandwidth.kernel] > 0
    assert bandwidth.rates.keys() == {"copy", "triad", "read"}


def test_the_device_has_a_name_and_memory() -> None:
    assert device_name(CPU)
    available = available_bytes(CPU)
    assert available is None or available > 0
