"""What calibration gathers, checked against the plain way; and its cache."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch import time_left
from mqasearch.assets import CACHE_VARIABLE
from mqasearch.conversion import ConvertibleModel, calibrate, calibration, refit
from mqasearch.conversion.text_batches import token_batches
from mqasearch.errors import AssetError, ModelError, UserError
from mqasearch.families import family_of
from mqasearch.merging import Statistics, merge_of
from tests.conversion.calibrated import texts
from tests.tiny import DEVICE, MODEL_TYPES, tiny_model

MEAN, ALIGNED, REFITTED = merge_of("mean"), merge_of("aligned", refit=False), merge_of("aligned")
ENOUGH = texts(40)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def calibrated(model: PreTrainedModel, *arguments: object, **options: object) -> Statistics:
    family = family_of(model.config.model_type)
    return calibrate(model, family, *arguments, **options)  # type: ignore[arg-type]


def inputs(model: PreTrainedModel, tokens: list[int]) -> list[Tensor]:
    """[length, D + 1] of every layer: x̃ of one text, alone in its batch."""
    family, seen = family_of(model.config.model_type), []
    hooks = [
        family.input_projection(family.attention(block)).register_forward_hook(
            lambda module, args, output: seen.append(args[0][0])
        )
        for block in family.blocks(model)
    ]
    with torch.no_grad():
        model(torch.tensor([tokens], device=DEVICE), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat([x.cpu(), torch.ones(len(x), 1)], dim=1).double() for x in seen]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_moments_are_those_of_the_texts_one_by_one(model_type: str) -> None:
    model, sequences = tiny_model(model_type), texts(20)
    by_text = [inputs(model, tokens) for tokens in sequences]
    for index, layer in enumerate(calibrated(model, sequences, ALIGNED).layers):
        later = torch.cat([each[index][1:] for each in by_text])
        first = torch.cat([each[index][:1] for each in by_text])
        assert (layer.n_tokens, layer.n_first) == (len(later), len(first))
        assert layer.first_moment is not None
        torch.testing.assert_close(
            layer.x_moment, later.T @ later / len(later), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            layer.first_moment, first.T @ first / len(first), atol=1e-5, rtol=1e-4
        )


def test_batches_hold_every_token_once() -> None:
    sequences = texts(50)
    batches = list(token_batches(sequences, max_tokens=64, max_length=9))
    tokens = sorted(token for batch in batches for token in batch.tokens[batch.real].tolist())
    assert tokens == sorted(token for sequence in sequences for token in sequence)
    assert all(batch.tokens.numel() <= 64 and batch.tokens.shape[1] <= 9 for batch in batches)
    padding = sum(int((~batch.real).sum()) for batch in batches)
    assert padding < len(tokens) / 4


def test_texts_longer_than_the_model_has_positions_for_are_cut() -> None:
    model = tiny_model("gpt2")  # 128 positions
    layer = calibrated(model, [[5] * 300, [7]], ALIGNED).layers[0]
    assert (layer.n_tokens, layer.n_first) == (297, 4)


@pytest.mark.parametrize("merge", [ALIGNED, REFITTED])
def test_the_model_is_left_as_it_was(merge: object) -> None:
    model = tiny_model("phi3")
    before = dict(model.named_parameters())
    calibrated(model, ENOUGH, merge)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2")
    first = calibrated(model, ENOUGH, REFITTED, targets=(1, 2), fingerprint="f" * 64)

    def run(*_: object) -> None:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(calibration, "run_base", run)
    monkeypatch.setattr(refit, "run_base", run)
    second = calibrated(model, ENOUGH, REFITTED, targets=(2, 1), fingerprint="f" * 64)

    assert second.digest == first.digest
    for one, other in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.x_moment, other.x_moment)
        assert one.fitted.keys() == other.fitted.keys() == {1, 2}
        for target in (1, 2):
            for name, tensor in one.fitted[target].items():
                assert torch.equal(tensor, other.fitted[target][name])


def test_the_parts_that_are_computed_say_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock goes 31 seconds from look to look, so that the first of two batches is told."""
    clock = count(0, 31)
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level("INFO", logger="mqasearch")
    model, merge = tiny_model("llama"), replace(REFITTED, tune=True)

    def told(targets: tuple[int, ...]) -> list[str]:
        caplog.clear()
        calibrated(model, texts(400), merge, targets=targets, fingerprint="f" * 64)
        lines = [row for row in caplog.messages if row.startswith("calibrating, ")]
        assert all(" %, about " in row for row in lines)
        return [*dict.fromkeys(row.split(":")[0].partition(", ")[2] for row in lines)]

    fitted = ["layers fitted to {} KV heads", "layers tuned to {} KV heads"]
    assert told((1,)) == ["moments", *(row.format(1) for row in fitted)]
    assert told((1, 2)) == [row.format(2) for row in fitted]
    assert told((1, 2)) == []


def test_cached_or_not_is_the_same() -> None:
    model = tiny_model("gpt_neox")
    cached = calibrated(model, ENOUGH, REFITTED, fingerprint="f" * 64)
    alone = calibrated(model, ENOUGH, REFITTED)
    for one, other in zip(cached.layers, alone.layers, strict=True):
        assert torch.equal(one.x_moment, other.x_moment)
        for name, tensor in one.fitted[1].items():
            assert torch.equal(tensor, other.fitted[1][name])


def test_the_digest_names_model_and_text_and_nothing_else() -> None:
    model = tiny_model("llama")
    digests = {
        calibrated(model, sequences, merge, fingerprint=fingerprint).digest
        for sequences, merge, fingerprint in [
            (ENOUGH, ALIGNED, "a"),
            (ENOUGH, REFITTED, "a"),
            (ENOUGH[1:], ALIGNED, "a"),
            (ENOUGH, ALIGNED, "b"),
        ]
    }
    assert len(digests) == 3


@pytest.mark.parametrize("change", ["dtype", "merge", "target", "text"])
def test_a_cached_refit_is_only_for_what_it_was_made_for(change: str) -> None:
    model, merge, targets, text = tiny_model("llama"), REFITTED, (1,), ENOUGH
    calibrated(model, text, merge, targets=targets, fingerprint="f")
    if change == "dtype":
        model = model.to(torch.bfloat16)
    if change == "merge":
        merge = merge_of("mean", refit=True)
    if change == "target":
        targets = (2,)
    if change == "text":
        text = ENOUGH[1:]
    cached = calibrated(model, text, merge, targets=targets, fingerprint="f")
    alone = calibrated(model, text, merge, targets=targets)
    target = targets[0]
    for one, other in zip(cached.layers, alone.layers, strict=True):
        for name, tensor in one.fitted[target].items():
            assert torch.equal(tensor, other.fitted[target][name])


def test_a_damaged_cache_names_the_folder_to_delete(tmp_path: Path) -> None:
    model = tiny_model("llama")
    calibrated(model, ENOUGH, ALIGNED, fingerprint="f")
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(AssetError, match=f"delete the folder {file.parent}"):
        calibrated(model, ENOUGH, ALIGNED, fingerprint="f")


def test_overflow_is_one_line_with_the_layer() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.inf
    with pytest.raises(ModelError, match=r"^layer 1: attention gives NaN or infinity"):
        calibrated(model, ENOUGH, ALIGNED)


@pytest.mark.parametrize("sequences", [[], [[]]])
def test_no_text_is_refused(sequences: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"documents\.calibration_tokens"):
        calibrated(tiny_model("llama"), sequences, ALIGNED)


def test_single_tokens_are_text_too() -> None:
    layer = calibrated(tiny_model("llama"), [[4], [5]], ALIGNED).layers[0]
    assert (layer.n_tokens, layer.first_moment) == (2, None)


def test_a_merge_without_a_refit_has_nothing_fitted() -> None:
    for merge in (MEAN, ALIGNED):
        statistics = calibrated(tiny_model("llama"), texts(3), merge)
        assert not any(layer.fitted for layer in statistics.layers)


def test_a_target_that_was_not_fitted_is_a_mistake_of_the_caller() -> None:
    model = tiny_model("llama")
    statistics = calibrated(model, ENOUGH, REFITTED, targets=(2,))
    convertible = ConvertibleModel(model, family_of("llama"), REFITTED, statistics)
    convertible.apply((2, 2, 2))
    with pytest.raises(ValueError, match="fitted no layer to 1 KV heads"):
        convertible.apply((1, 2, 2))
