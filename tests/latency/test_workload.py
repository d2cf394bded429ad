"""Workloads: every variant in every setting, in an order that favours none."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby, pairwise

import pytest

from mqasearch.errors import UserError
from mqasearch.latency.workload import Setting, Workload, along_front, shares_of_layers
from mqasearch.mask import ModelShape

WORKLOAD = Workload(contexts=(8, 16), batch_sizes=(1, 2), n_tokens=3, repetitions=4)
VARIANTS = ("a", "b", "c")


@pytest.mark.parametrize("together", [False, True])
def test_every_variant_is_timed_as_often_in_every_setting(together: bool) -> None:
    turns = WORKLOAD.turns(VARIANTS, together=together)
    timed = Counter((turn.setting, turn.variant) for turn in turns if turn.timed)
    assert set(timed.values()) == {WORKLOAD.repetitions}
    assert len(timed) == len(VARIANTS) * len(WORKLOAD.settings)


@pytest.mark.parametrize("together", [False, True])
def test_every_round_starts_with_another_variant(together: bool) -> None:
    turns = [turn for turn in WORKLOAD.turns(VARIANTS, together=together) if turn.timed]
    order = [name for name, _ in groupby(turn.variant for turn in turns)]
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert all(sorted(names) == sorted(VARIANTS) for names in rounds)
    assert {names[0] for names in rounds} == set(VARIANTS)
    opening = {turn.variant for turn in turns if turn.opens_round}
    assert opening == set(VARIANTS)


def test_whoever_is_loaded_anew_warms_up_and_runs_all_settings() -> None:
    turns = WORKLOAD.turns(VARIANTS, together=False)
    for _, group in groupby(turns, key=lambda turn: turn.variant):
        mine = list(group)
        assert [turn.setting for turn in mine if turn.timed] == list(WORKLOAD.settings)
        assert [turn.timed for turn in mine] == [False, True] * len(WORKLOAD.settings)


def test_variants_in_memory_warm_up_once() -> None:
    turns = WORKLOAD.turns(VARIANTS, together=True)
    warm_ups = Counter((turn.setting, turn.variant) for turn in turns if not turn.timed)
    assert set(warm_ups.values()) == {1}
    assert [setting for setting, _ in groupby(turn.setting for turn in turns)] == list(
        WORKLOAD.settings
    )


def test_the_largest_setting_is_no_smaller_than_any() -> None:
    assert WORKLOAD.largest == Setting(16, 2)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 7, 30])
def test_shares_are_spread_evenly(n_layers: int) -> None:
    shape = ModelShape(n_layers, 4, 2, 8, 32, 2)
    variants = list(shares_of_layers(shape).values())
    counts = [heads.count(1) for heads in variants]
    assert counts[0] == 0
    assert counts[-1] == n_layers
    assert counts == sorted(set(counts))
    for heads in variants:
        layers = [layer for layer, n in enumerate(heads) if n == 1]
        gaps = {later - earlier for earlier, later in pairwise(layers)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_long_front_is_thinned_evenly_with_both_ends() -> None:
    shape = ModelShape(8, 8, 4, 8, 64, 2)
    front = [(4,) * (8 - n) + (1,) * n for n in range(9)]
    variants = along_front(shape, front)
    assert len(variants) == 6
    original, *masks = variants.values()
    assert original == shape.original
    assert (masks[0], masks[-1]) == (front[1], front[-1])
    assert all(heads in front for heads in masks)
    assert len(along_front(shape, front[:4])) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": (0,)}, "--context"),
        ({"contexts": ()}, "--context"),
        ({"batch_sizes": (1, -2)}, "--batch-size"),
        ({"n_tokens": 0}, "--n-tokens"),
        ({"repetitions": 0}, "--repetitions"),
    ],
)
def test_a_workload_of_nothing_is_refused(changes: Mapping[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Workload(**changes)  # type: ignore[arg-type]
