"""Laws of the refit (merging.md, law 8)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel, calibrate, refit
from mqasearch.conversion.normal_equations import RIDGE, RIDGES, NormalEquations
from mqasearch.conversion.refit import refit_layers, refit_sequential
from mqasearch.conversion.text_batches import TokenBatch
from mqasearch.errors import ModelError, UserError
from mqasearch.families import AttentionWeights, family_of
from mqasearch.merging import merge_of
from tests.conversion.calibrated import random, texts
from tests.tiny import DEVICE, MODEL_TYPES, tiny_model

TEXTS = texts(40)
MERGES = [("mean", {}), ("aligned", {"refit": False})]


def outputs(model: PreTrainedModel, layer: int) -> list[Tensor]:
    """What one layer's attention adds to the stream, text by text."""
    family, seen = family_of(model.config.model_type), []
    attention = family.attention(family.blocks(model)[layer])
    hook = attention.register_forward_hook(lambda m, a, output: seen.append(output[0][0]))
    with torch.no_grad():
        for tokens in TEXTS:
            model(torch.tensor([tokens], device=DEVICE), use_cache=False)
    hook.remove()
    return seen


def error(model: PreTrainedModel, layer: int, wanted: list[Tensor]) -> float:
    found = outputs(model, layer)
    return sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("name", "parameters"), MERGES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_law_8_refit_never_raises_the_calibration_error(
    model_type: str, name: str, parameters: dict[str, object]
) -> None:
    """Measured from outside: with one layer converted, its input is the original's."""
    model, family = tiny_model(model_type), family_of(model_type)
    without, with_refit = merge_of(name, **parameters), merge_of(name, refit=True)
    statistics = calibrate(model, family, TEXTS, with_refit)
    wanted = [outputs(model, layer) for layer in range(3)]
    before = ConvertibleModel(model, family, without, statistics)
    after = ConvertibleModel(model, family, with_refit, statistics)
    for layer in range(3):
        kv_heads = tuple(1 if index == layer else 4 for index in range(3))
        with before.converted(kv_heads):
            merged = error(model, layer, wanted[layer])
        with after.converted(kv_heads):
            refitted = error(model, layer, wanted[layer])
        assert refitted < 0.95 * merged


def merged_layers(model: PreTrainedModel, target: int = 1) -> list[AttentionWeights]:
    convertible = ConvertibleModel(model, family_of(model.config.model_type), merge_of("mean"))
    return [convertible.merged(layer, target) for layer in range(3)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_only_the_output_projection_is_new(model_type: str) -> None:
    model = tiny_model(model_type)
    merged = merged_layers(model)
    for before, after in zip(
        merged, refit_layers(model, family_of(model_type), merged, TEXTS), strict=True
    ):
        for name, tensor in after.tensors().items():
            same = torch.equal(tensor.float(), before.tensors()[name].float())
            assert same == (name not in ("o", "o_bias"))


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, family = tiny_model("gemma2"), family_of("gemma2")
    merged = merged_layers(model)
    one = refit_layers(model, family, merged, TEXTS)
    monkeypatch.setattr(refit, "BATCH_TOKENS", 30)
    other = refit_layers(model, family, merged, TEXTS)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.o, b.o, atol=1e-4, rtol=1e-3)


def test_nothing_converted_needs_no_refit() -> None:
    """Layers that say what the original says keep their projection."""
    model, family = tiny_model("llama"), family_of("llama")
    live = [family.read(family.attention(block)) for block in family.blocks(model)]
    original = [weights.to(device="cpu") for weights in live]
    for before, after in zip(original, refit_layers(model, family, original, TEXTS), strict=True):
        torch.testing.assert_close(after.o.float(), before.o, atol=1e-4, rtol=1e-4)


def test_the_equations_are_those_of_ridge_regression() -> None:
    """Against least squares on stacked rows: [Z; √λ I] W = [Y; √λ W_O]."""
    weights = AttentionWeights(
        q=random(0, 2, 3, 5), k=random(1, 1, 3, 5), v=random(2, 1, 3, 5), o=random(3, 5, 2, 3),
        o_bias=random(4, 5), rope=family_of("gpt2").read(
            family_of("gpt2").attention(family_of("gpt2").blocks(tiny_model("gpt2"))[0])
        ).rope,
    )  # fmt: skip
    heads, wanted = random(5, 50, 6), random(6, 50, 5)
    sums = NormalEquations(weights)
    for rows in (slice(0, 20), slice(20, 50)):
        sums.add(heads[None, rows], wanted[None, rows], batch_of(heads[None, rows], rows.start))

    solved = sums.solved(0.1, "layer 0")

    strength = (0.1 * heads.square().sum(0).mean()).sqrt().double()
    z = torch.cat([heads, torch.ones(50, 1)], dim=1).double()
    shrink = torch.cat([strength * torch.eye(6), torch.zeros(6, 1)], dim=1).double()
    target = strength * weights.o.flatten(1, 2).T.double()
    rows, goals = torch.cat([z, shrink]), torch.cat([wanted.double(), target])
    expected = torch.linalg.lstsq(rows, goals).solution
    torch.testing.assert_close(solved.o.flatten(1, 2).T, expected[:6], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(solved.o_bias, expected[6], atol=1e-5, rtol=1e-5)


def batch_of(heads: torch.Tensor, parity: int = 0) -> TokenBatch:
    tokens = torch.zeros(heads.shape[:2], dtype=torch.long)
    tokens[:, 0] = torch.arange(len(tokens)) + parity
    return TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize(("noise", "best"), [(0.0, RIDGES[-1]), (100.0, RIDGES[0])])
def test_the_ridge_is_as_strong_as_the_text_is_noisy(noise: float, best: float) -> None:
    weights = replace(family_of("gpt2").read(
        family_of("gpt2").attention(family_of("gpt2").blocks(tiny_model("gpt2"))[0])
    ), o_bias=None)  # fmt: skip
    inputs = weights.n_heads * weights.head_dim
    heads = random(0, 8, 2 * inputs, inputs)
    wanted = heads @ random(1, inputs, len(weights.o))
    wanted = wanted + noise * random(2, *wanted.shape)
    sums = NormalEquations(weights)
    sums.add(heads, wanted, batch_of(heads))
    chosen, expected = (sums.solved(ridge, "layer 0").o for ridge in (None, best))
    assert torch.equal(chosen, expected)


def test_text_that_cannot_be_halved_leaves_the_ridge_as_it_is() -> None:
    weights = family_of("gpt2").read(
        family_of("gpt2").attention(family_of("gpt2").blocks(tiny_model("gpt2"))[0])
    )
    heads = random(0, 1, 50, weights.n_heads * weights.head_dim)
    sums = NormalEquations(weights)
    sums.add(heads, random(1, 1, 50, len(weights.o)), batch_of(heads))
    assert torch.equal(sums.solved(None, "layer 0").o, sums.solved(RIDGE, "layer 0").o)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_sequential_form_begins_like_the_parallel_one_and_follows_the_original(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "BATCH_TOKENS", 100)  # several, so that layers change in between
    model, family = tiny_model(model_type), family_of(model_type)
    before = dict(model.named_parameters())
    merged = merged_layers(model)
    wanted = outputs(model, 2)

    sequential = refit_sequential(model, family, {0: merged[0], 2: merged[2]}, TEXTS)

    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    parallel = refit_layers(model, family, merged, TEXTS)
    torch.testing.assert_close(sequential[0].o, parallel[0].o, atol=1e-4, rtol=1e-3)
    blocks = family.blocks(model)
    family.write(family.attention(blocks[0]), sequential[0])
    family.write(family.attention(blocks[2]), parallel[2])
    of_parallel = error(model, 2, wanted)
    family.write(family.attention(blocks[2]), sequential[2])
    assert error(model, 2, wanted) <= of_parallel * 1.001


def test_too_little_text_says_how_much_is_needed() -> None:
    model = tiny_model("llama")  # 4 heads of 8: 128 tokens
    with pytest.raises(UserError) as raised:
        calibrate(model, family_of("llama"), [[5] * 127], merge_of("aligned"))
    said = str(raised.value)
    for part in ("refit", "128 calibration tokens", "127", "documents.calibration_tokens to 128"):
        assert part in said
    assert said.endswith("refit: false")
    calibrate(model, family_of("llama"), [[5] * 64, [6] * 64], merge_of("aligned"))


def test_overflow_is_one_line_with_the_layer() -> None:
    model = tiny_model("llama")
    merged = merged_layers(model)
    merged[1] = replace(merged[1], v=merged[1].v * 1e38)
    with pytest.raises(ModelError, match=r"^layer 1: attention gives NaN or infinity"):
        refit_layers(model, family_of("llama"), merged, TEXTS)


def test_heads_that_say_nothing_keep_their_projection() -> None:
    model = tiny_model("llama")
    merged = [replace(weights, v=weights.v * 0) for weights in merged_layers(model)]
    for before, after in zip(
        merged, refit_layers(model, family_of("llama"), merged, TEXTS), strict=True
    ):
        assert torch.equal(before.o, after.o)
