"""What pays: intervals that hold for any distribution, and a sentence that follows them."""

import itertools

import pytest

from mqasearch.latency.gains import (
    LEAST_GAIN,
    Gain,
    beyond_bytes,
    gain_of,
    what_pays,
)

PAYS, LITTLE, NOISE, LOSS = [1.2] * 5, [1.01] * 5, [0.9, 0.95, 1.0, 1.1, 1.3], [0.8] * 5


def test_gains_are_ordered_by_the_interval() -> None:
    edges = [0.5, 0.99, 1.0, 1.01, 1 + LEAST_GAIN, 2.0]
    for low, high in itertools.combinations_with_replacement(edges, 2):
        found = gain_of(low, high)
        assert (found is Gain.PAYS) == (low >= 1 + LEAST_GAIN)
        assert (found in (Gain.PAYS, Gain.LITTLE)) == (low > 1)
        assert (found is Gain.LOSS) == (high < 1)


def test_the_sentence_says_from_where_on_it_pays() -> None:
    """By the issue's own example."""
    speedups = {(1, 512): NOISE, (4, 512): NOISE, (1, 2048): NOISE, (4, 2048): PAYS}
    assert what_pays(speedups | {(1, 8192): PAYS, (4, 8192): PAYS}, "30 of 30 MQA") == (
        "On this machine, with 30 of 30 MQA, decoding gains at least 5 % from 8,192 tokens of "
        "context on at batch size 1, from 2,048 tokens of context on at batch size 4; gains "
        "nothing beyond noise at 512 and 2,048 tokens at batch size 1, at 512 tokens at batch "
        "size 4 (measured up to 8,192 tokens)"
    )


def test_batch_sizes_of_which_the_same_is_true_are_named_together() -> None:
    speedups = {(1, 512): LITTLE, (2, 512): LITTLE, (4, 512): LOSS}
    sentence = what_pays(speedups, "x")
    assert "maybe less than 5 % at 512 tokens at batch sizes 1 and 2; loses" in sentence


def test_a_gain_that_ends_is_not_said_to_go_on() -> None:
    sentence = what_pays({(1, 64): PAYS, (1, 128): NOISE, (1, 256): PAYS}, "x")
    assert "5 % at 64 tokens and from 256 tokens of context on at batch size 1;" in sentence
    assert "tokens of context on" not in what_pays({(1, 64): PAYS, (1, 128): NOISE}, "x")


def test_the_order_of_the_settings_does_not_matter() -> None:
    speedups = {(1, 64): PAYS, (1, 128): NOISE, (4, 64): LOSS, (4, 128): LITTLE}
    sentences = {what_pays(dict(order), "x") for order in itertools.permutations(speedups.items())}
    assert len(sentences) == 1


def test_every_setting_is_spoken_of_once() -> None:
    kinds = [PAYS, LITTLE, NOISE, LOSS]
    for chosen in itertools.product(kinds, repeat=3):
        speedups = {(1, 10**power): kind for power, kind in enumerate(chosen, 1)}
        sentence = what_pays(speedups, "x").split(" (measured")[0]
        for kind, gain in zip(kinds, Gain, strict=True):
            assert (gain.value in sentence) == (kind in chosen)


@pytest.mark.parametrize("n", [1, 4])
def test_too_few_repetitions_tell_nothing(n: int) -> None:
    assert f"Too few repetitions ({n})" in what_pays({(1, 512): [1.5] * n}, "x")


def test_a_gain_that_bytes_do_not_explain_is_warned_of_by_its_worst_setting() -> None:
    speedups = {(1, 512): [1.2] * 5, (1, 2048): [2.0] * 5, (4, 512): [3.0] * 5}
    explained = {(1, 512): 1.2, (1, 2048): 2.0, (4, 512): 3.0}
    assert beyond_bytes(speedups, explained) is None
    warning = beyond_bytes(speedups, explained | {(1, 2048): 1.1, (4, 512): 2.0})
    assert warning is not None
    assert "at 2,048 tokens and batch size 1 it is 2.00 times" in warning
    assert "explain 1.10" in warning


def test_a_gain_beyond_the_bytes_by_noise_alone_is_no_cause_to_warn() -> None:
    allowed = {(1, 512): 1.0}
    assert beyond_bytes({(1, 512): [0.9, 1.0, 1.5, 2.0, 3.0]}, allowed) is None
    assert beyond_bytes({(1, 512): [1.0 + LEAST_GAIN / 2] * 5}, allowed) is None
    assert beyond_bytes({(1, 512): [2.0] * 4}, allowed) is None
