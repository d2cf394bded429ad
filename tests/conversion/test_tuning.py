"""Laws of the tuning: local fitting of merged layers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel, calibrate, tuning
from mqasearch.conversion.refit import calibration_batches
from mqasearch.conversion.trained_layer import TrainedLayer, frozen, learning_rate, rate_at
from mqasearch.conversion.tuning import tune_layers
from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, family_of
from mqasearch.merging import Merge, merge_of
from tests.conversion.calibrated import convertible_of, texts
from tests.tiny import DEVICE, GROUPED, MODEL_TYPES, logits, tiny_model, tiny_tokens

TEXTS = texts(240)


def merged_layers(model: PreTrainedModel, target: int = 1) -> list[AttentionWeights]:
    convertible = ConvertibleModel(model, family_of(model.config.model_type), merge_of("mean"))
    return [convertible.merged(layer, target) for layer in range(3)]


def held_out_error(
    model: PreTrainedModel, layer: int, weights: AttentionWeights, sequences: Sequence[list[int]]
) -> float:
    """|Y' − Y|² of one layer's attention, over the texts that a tuning holds out, from outside."""
    family = family_of(model.config.model_type)
    attention = family.attention(family.blocks(model)[layer])
    seen: list[Tensor] = []
    hook = attention.register_forward_hook(lambda m, a, output: seen.append(output[0]))
    originals = family.parameters(attention)
    total = 0.0
    for text in sequences[:: tuning.HELD_OUT]:
        tokens = torch.tensor([text], device=DEVICE)
        logits(model, tokens)
        family.write(attention, weights)
        logits(model, tokens)
        family.install(attention, originals)
        before, after = seen[-2:]
        total += float((after - before).square().sum())
    hook.remove()
    return total


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_tuned_layers_are_nearer_to_the_original_on_held_out_text(model_type: str) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    family = family_of(model_type)
    before, asking = logits(model, tokens), [p.requires_grad for p in model.parameters()]
    merged = merged_layers(model)
    tuned = tune_layers(model, family, merged, TEXTS)
    assert torch.equal(logits(model, tokens), before)
    assert [p.requires_grad for p in model.parameters()] == asking
    for layer in range(3):
        first = held_out_error(model, layer, merged[layer], TEXTS)
        assert held_out_error(model, layer, tuned[layer], TEXTS) < 0.95 * first


@pytest.mark.parametrize("rate", [0.0, 1e6])
def test_what_does_not_help_is_not_kept(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that changes nothing, and one that ends in infinities."""
    monkeypatch.setattr(tuning, "_RATE", rate)
    model = tiny_model("llama")
    merged = merged_layers(model)
    tuned = tune_layers(model, family_of("llama"), merged, TEXTS[:24])
    for before, after in zip(merged, tuned, strict=True):
        for name, tensor in after.tensors().items():
            assert torch.equal(tensor, before.tensors()[name])


def test_the_same_text_gives_the_same_layers() -> None:
    model = tiny_model("qwen3")
    one, two = (
        tune_layers(model, family_of("qwen3"), merged_layers(model), TEXTS[:60]) for _ in range(2)
    )
    for first, second in zip(one, two, strict=True):
        for name, tensor in first.tensors().items():
            assert torch.equal(tensor, second.tensors()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_weights_are_fitted_in_float32(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    merged = merged_layers(model)
    tuned = tune_layers(model, family_of("llama"), merged, TEXTS)
    assert {each.q.dtype for each in tuned} == {torch.float32}
    first = sum(held_out_error(model, n, merged[n], TEXTS) for n in range(3))
    last = sum(held_out_error(model, n, tuned[n], TEXTS) for n in range(3))
    assert last < 0.95 * first


def test_it_needs_some_texts() -> None:
    model = tiny_model("llama")
    with pytest.raises(
        UserError, match=r"holds one calibration text in 6 out .* give 5.*tune: false"
    ):
        tune_layers(model, family_of("llama"), merged_layers(model), TEXTS[:5])


def test_too_little_text_is_refused_before_anything_is_run() -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match=r"tune needs at least 128 .*tune: false"):
        calibrate(model, family_of("llama"), texts(6), merge_of("mean", tune=True))


def test_layers_are_tuned_once_for_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path))
    model, family = tiny_model("llama"), family_of("llama")
    merge = merge_of("aligned", tune=True)

    def layers() -> list[dict[str, Tensor]]:
        found = calibrate(model, family, TEXTS, merge, fingerprint="a" * 64)
        assert list(found.places) == ["moments", "fitted to 1", "tuned to 1"]
        return [dict(layer.fitted[1]) for layer in found.layers]

    first = layers()
    monkeypatch.setattr(tuning, "PASSES", 0)  # would leave the layers as they were
    second = layers()
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    refitted = calibrate(model, family, TEXTS, merge_of("aligned"), fingerprint="a" * 64)
    assert not torch.equal(refitted.layers[0].fitted[1]["q"].float(), first[0]["q"].float())


def test_a_merge_without_refit_can_be_tuned() -> None:
    model, family = tiny_model("gpt2"), family_of("gpt2")
    merge = merge_of("mean", tune=True)
    assert (merge.digest, merge.needs_calibration) == ("mean(tune=True)", True)
    statistics = calibrate(model, family, TEXTS, merge)
    tuned = ConvertibleModel(model, family, merge, statistics).merged(1, 1)
    assert not torch.equal(tuned.k, merged_layers(model)[1].k)


@pytest.mark.parametrize(
    ("model_type", "target"), [*((each, 1) for each in MODEL_TYPES), ("llama", 2)]
)
def test_gradients_reach_the_heads_through_every_layout(model_type: str, target: int) -> None:
    """Against torch.func's gradient through ``replicated`` and ``pack``."""
    model, family = tiny_model(model_type), family_of(model_type)
    attention = family.attention(family.blocks(model)[1])
    weights = merged_layers(model, target)[1]
    layer = TrainedLayer(family, attention, weights)
    loss = _loss_of(model)
    with frozen(model), layer.installed():
        loss(model).backward()
        layer.take_gradients(0.5)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.tensors().items()}
    tensors: dict[str, Any] = dict(leaves)
    packed = family.pack(replace(weights, **tensors).replicated(4))
    names = {id(module): name for name, module in model.named_modules()}
    parameters = {f"{names[id(attention)]}.{name}": tensor for name, tensor in packed.items()}
    expected = torch.autograd.grad(
        loss(lambda tokens: torch.func.functional_call(model, parameters, (tokens,))),
        list(leaves.values()),
    )
    for name, gradient in zip(leaves, expected, strict=True):
        found = layer.masters[name].grad
        assert found is not None
        torch.testing.assert_close(found, 2 * gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("merge", [merge_of("mean"), merge_of("aligned", refit=False)])
def test_fused_adam_steps_as_the_plain_one_does(model_type: str, merge: Merge) -> None:
    """Fused Adam goes wrong, silently, if a tensor and its gradient differ in their layout."""
    model, family = tiny_model(model_type), family_of(model_type)
    attention = family.attention(family.blocks(model)[1])
    weights = convertible_of(model, merge).merged(1, 1)
    found = []
    for is_fused in (False, True):
        layer = TrainedLayer(family, attention, weights)
        adam = torch.optim.Adam(layer.masters.values(), lr=1e-3, fused=is_fused)
        with frozen(model), layer.installed():
            _loss_of(model)(model).backward()
            layer.take_gradients()
        adam.step()
        found.append(layer.values())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-5, rtol=1e-4)


def _loss_of(model: PreTrainedModel) -> Callable[[Callable[[Tensor], Any]], Tensor]:
    tokens = tiny_tokens()

    def loss(run: Callable[[Tensor], Any] | nn.Module) -> Tensor:
        found: Tensor = run(tokens).logits.square().mean()
        return found

    return loss


@pytest.mark.parametrize("model_type", GROUPED)
def test_what_is_written_is_what_the_masters_say(model_type: str) -> None:
    model, family = tiny_model(model_type, n_kv_heads=2), family_of(model_type)
    convertible = ConvertibleModel(model, family, merge_of("mean"))
    weights = convertible.merged(0, 1)
    attention = family.attention(family.blocks(model)[0])
    layer = TrainedLayer(family, attention, weights)
    with torch.no_grad():
        layer.masters["k"] += 1
    layer.write()
    with layer.installed():
        found = family.read(attention)
    assert torch.equal(found.k, (weights.k + 1).expand_as(found.k))
    assert torch.equal(family.read(attention).k, convertible.original(0).k)


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [rate_at(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_wide_models_take_smaller_steps() -> None:
    assert learning_rate(1e-3, 576) == 1e-3
    assert learning_rate(1e-3, 5760) == pytest.approx(1e-4)
    assert learning_rate(1e-3, 8) == 2e-3


def test_every_text_is_fitted_to_or_held_out() -> None:
    model = tiny_model("llama")
    fitted, held_out = tuning._split(TEXTS)
    assert sorted([*fitted, *held_out]) == sorted(TEXTS)
    assert len(held_out) == len(TEXTS) / tuning.HELD_OUT
    batches = calibration_batches(model, TEXTS, None, 32)
    assert max(batch.tokens.numel() for batch in batches) <= 32
