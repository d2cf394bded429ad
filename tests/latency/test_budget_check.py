"""Whether masks reach a decoding time: predictions, intervals, and what speaks against them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from mqasearch.budget import DecodeTimes
from mqasearch.errors import UserError
from mqasearch.export.mask_json import schema
from mqasearch.latency import measure
from mqasearch.latency.budget_check import (
    TimeBudget,
    check_budget,
    finalists,
    time_budget,
)
from mqasearch.latency.report import Report, Spread
from mqasearch.latency.workload import Workload
from mqasearch.models import LoadedModel
from tests.models.checkpoints import tokenizer
from tests.tiny import tiny_model

TIMES = DecodeTimes(6, 1, {2: 20.0, 1: 12.0})
GIVEN: dict[str, Any] = {"context": 6, "batch_size": 1, "ms": {"2": 20.0, "1": 12.0}}


@pytest.fixture(scope="module")
def report() -> Report:
    """The original and a mask of a tiny model, measured once."""
    model = tiny_model("llama", n_layers=4, n_kv_heads=2).requires_grad_(False)
    loaded = LoadedModel(model, tokenizer(), "tiny", "0" * 64, torch.device("cpu"), torch.float32)
    variants = {"original": (2, 2, 2, 2), "gp": (2, 1, 2, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mqasearch.latency.machine.MIN_BUFFER_BYTES", 2**20)
        return measure(loaded, variants, Workload((6,), (1,), n_tokens=2, repetitions=1))


def timed(report: Report, original: list[float], mask: list[float]) -> Report:
    """The report with other times, in milliseconds."""
    rows = [
        replace(
            row,
            decode=Spread.of([each / 1e3 for each in samples]),
            decode_speedup=Spread.of(
                [first / each for first, each in zip(original, samples, strict=True)]
            ),
        )
        for row, samples in zip(report.rows, (original, mask), strict=True)
    ]
    return replace(report, rows=tuple(rows))


FIVE = [20.0, 20.4, 19.6, 20.2, 19.9]


@pytest.mark.parametrize(
    ("decode_ms", "is_share", "met"),
    [
        (16.5, False, True),
        (15.7, False, False),
        (16.1, False, None),
        (15.8, False, None),
        (16.4, False, True),
        (16.9, True, True),
        (14.0, True, False),
    ],
)
def test_a_time_is_met_if_the_whole_interval_is_within_it(
    report: Report, decode_ms: float, is_share: bool, met: bool | None
) -> None:
    found = timed(report, FIVE, [16.0, 16.4, 15.8, 16.2, 16.1])
    check = check_budget(found, TimeBudget(decode_ms, TIMES, is_share))
    (mask,) = check.masks
    assert (mask.variant, mask.predicted_ms, mask.met) == ("gp", 16.0, met)
    assert check.warning is None
    *_, line = check.lines
    assert line.endswith({True: "met", False: "missed", None: "not decided"}[met])
    document = found.document() | {"budget": check.document}
    Draft202012Validator(schema("latency")).validate(document)


def test_a_share_is_judged_by_rounds_and_not_by_todays_speed(report: Report) -> None:
    """The machine is twice as slow as when the search was given its times."""
    slow = timed(report, [2 * each for each in FIVE], [2 * 0.8 * each for each in FIVE])
    share, absolute = (
        check_budget(slow, TimeBudget(16.4, TIMES, is_share)) for is_share in (True, False)
    )
    assert share.masks[0].met is True
    assert share.masks[0].measured_ms == pytest.approx(16.0)
    assert absolute.masks[0].met is False
    for check in (share, absolute):
        assert check.warning is not None
        assert "takes 40 ms, and took 20" in check.lines[-1]


def test_too_few_repetitions_decide_nothing(report: Report) -> None:
    (mask,) = check_budget(timed(report, [20.0], [10.0]), TimeBudget(16.0, TIMES, False)).masks
    assert (mask.interval, mask.met) == (None, None)


def test_another_setting_says_nothing_of_the_budget(report: Report) -> None:
    other = DecodeTimes(8, 1, TIMES.ms)
    check = check_budget(report, TimeBudget(16.0, other, False))
    assert (check.masks, check.document) == ((), None)
    assert check.lines[-1] == "beware: the measurement has no context 8, batch size 1"


def test_the_budget_of_a_mask_json() -> None:
    assert time_budget({"budget": {"decode_ms": 16, "latency": GIVEN}}) == TimeBudget(
        16.0, TIMES, False
    )
    share = time_budget({"budget": {"decode_fraction": 0.75, "latency": GIVEN}})
    assert share == TimeBudget(15.0, TIMES, True)
    without = {"decode_ms": None, "n_layers": 2}
    others = ({"n_layers": 2}, {"kv_bytes_fraction": 0.5}, without)
    for other in ({}, *({"budget": each} for each in others)):
        assert time_budget(other) is None
    with pytest.raises(UserError, match=r"the mask's budget is not valid: .*measured ones"):
        time_budget({"budget": {"decode_ms": 16}})


def test_masks_at_the_budget_are_measured_once_and_named_ones_are_not() -> None:
    at_budget, other = {"decode_ms": 16, "latency": GIVEN}, {"kv_bytes_fraction": 0.5}
    masks = [
        {"kv_heads": [2, 1], "study": {"selector": "gp"}, "budget": at_budget},
        {"kv_heads": [1, 2], "study": {"selector": "greedy"}, "budget": at_budget},
        {"kv_heads": [2, 1], "study": {"selector": "tpe"}, "budget": at_budget},
        {"kv_heads": [1, 1], "budget": at_budget},
        {"kv_heads": [2, 2], "study": {"selector": "greedy"}, "budget": other},
    ]
    budget = TimeBudget(16.0, TIMES, False)
    assert finalists(masks, budget) == {"gp, tpe": (2, 1), "greedy": (1, 2), "mask 4": (1, 1)}
    with pytest.raises(UserError, match="no time with 3 KV heads in a layer"):
        finalists([masks[0] | {"kv_heads": [2, 3]}], budget)
