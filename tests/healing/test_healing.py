"""Laws of healing: distillation of the converted layers from the original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, family_of
from mqasearch.heal_recipe import AUTO_STEPS, Recipe, recipe_of
from mqasearch.healing import healed as healed_module
from mqasearch.healing import training
from mqasearch.healing.healed import Healed, heal
from mqasearch.healing.memory_needed import need
from mqasearch.healing.steps import Step
from mqasearch.healing.teacher import Lesson
from mqasearch.healing.text import healing_text
from mqasearch.healing.training import Healing
from mqasearch.mask import KVHeads
from mqasearch.merging import Place, merge_of
from tests.conversion.calibrated import texts
from tests.tiny import DEVICE, MODEL_TYPES, logits, tiny_model, tiny_tokens

TEXTS = texts(120)
KV_HEADS = (4, 1, 2)
FEW = Recipe(12, batch_tokens=64)


def convertible_of(model: PreTrainedModel) -> ConvertibleModel:
    return ConvertibleModel(model, family_of(model.config.model_type), merge_of("mean"))


def merged(model: PreTrainedModel, kv_heads: KVHeads = KV_HEADS) -> dict[int, AttentionWeights]:
    convertible = convertible_of(model)
    return {n: convertible.merged(n, heads) for n, heads in enumerate(kv_heads) if heads < 4}


def kl(model: PreTrainedModel, layers: dict[int, AttentionWeights]) -> float:
    """Per token of held-out text, from outside."""
    family = family_of(model.config.model_type)
    attentions = [family.attention(block) for block in family.blocks(model)]
    originals = [family.parameters(attention) for attention in attentions]
    total, n_tokens = 0.0, 0
    for text in TEXTS[::6]:
        tokens = torch.tensor([text], device=DEVICE)
        before = logits(model, tokens)[0].float().log_softmax(-1)
        for layer, weights in layers.items():
            family.write(attentions[layer], weights)
        after = logits(model, tokens)[0].float().log_softmax(-1)
        for attention, parameters in zip(attentions, originals, strict=True):
            family.install(attention, parameters)
        total += float(kl_div(after, before, reduction="sum", log_target=True))
        n_tokens += len(text)
    return total / n_tokens


def same(one: Healed, two: Healed) -> bool:
    assert one.layers.layers.keys() == two.layers.layers.keys()
    return all(
        torch.equal(tensor, two.layers.layers[layer].tensors()[name])
        for layer, weights in one.layers.layers.items()
        for name, tensor in weights.tensors().items()
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_healing_brings_the_model_nearer_to_the_original(model_type: str) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before, asking = logits(model, tokens), [p.requires_grad for p in model.parameters()]
    found = heal(convertible_of(model), KV_HEADS, TEXTS, Recipe(40, batch_tokens=128))
    assert torch.equal(logits(model, tokens), before)
    assert [p.requires_grad for p in model.parameters()] == asking
    assert found.facts is not None
    assert found.facts.after < found.facts.before
    layers = dict(found.layers.layers)
    assert kl(model, merged(model)) == pytest.approx(found.facts.before, rel=1e-3)
    assert kl(model, layers) == pytest.approx(found.facts.after, rel=1e-3)
    assert {n: each.n_kv_heads for n, each in layers.items()} == {1: 1, 2: 2}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_steps_change_nothing(model_type: str) -> None:
    model = tiny_model(model_type)
    found = heal(convertible_of(model), KV_HEADS, TEXTS, Recipe(0, batch_tokens=64))
    assert found.facts is not None
    assert (found.facts.steps, found.facts.best_step) == (0, 0)
    for layer, weights in merged(model).items():
        for name, tensor in weights.tensors().items():
            assert torch.equal(found.layers.layers[layer].tensors()[name], tensor)


def test_where_nothing_is_converted_there_is_nothing_to_heal() -> None:
    model = tiny_model("llama")
    convertible = convertible_of(model)
    found = heal(convertible, (4, 4, 4), [], FEW)
    assert (found.layers.layers, found.facts) == ({}, None)
    before = logits(model, tiny_tokens())
    healed = ConvertibleModel(model, family_of("llama"), merge_of("mean"), None, found.layers)
    with healed.converted((4, 4, 4)):
        assert torch.equal(logits(model, tiny_tokens()), before)


@pytest.mark.parametrize("rate", [0.5, 1e20])
def test_the_loss_never_ends_higher(rate: float) -> None:
    """Rates that are far too large: it gets worse, or diverges."""
    model = tiny_model("llama")
    recipe = Recipe(24, batch_tokens=64, learning_rate=rate)
    found = heal(convertible_of(model), KV_HEADS, TEXTS, recipe)
    assert found.facts is not None
    assert found.facts.after <= found.facts.before
    assert found.facts.ending == ("diverged" if rate > 1 else "held-out text got no better")
    assert kl(model, dict(found.layers.layers)) <= found.facts.before * (1 + 1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    model = tiny_model("qwen2")
    one, two, other = (
        heal(convertible_of(model), KV_HEADS, TEXTS, Recipe(12, 64, seed=seed))
        for seed in (0, 0, 1)
    )
    assert same(one, two)
    assert not same(one, other)


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [1, 7, 11])
def test_an_interrupted_healing_is_gone_on_with_to_the_same_weights(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(training, "EVALUATIONS", 4)
    model = tiny_model("llama")
    uninterrupted = heal(convertible_of(model), KV_HEADS, TEXTS, FEW)

    def interrupt(step: Step) -> None:
        if step.step == at:
            raise _Interrupted

    steps: list[int] = []
    with pytest.raises(_Interrupted):
        heal(convertible_of(model), KV_HEADS, TEXTS, FEW, fingerprint="f", watch=interrupt)
    found = heal(
        convertible_of(model),
        KV_HEADS,
        TEXTS,
        FEW,
        fingerprint="f",
        watch=lambda step: steps.append(step.step),
    )
    assert same(found, uninterrupted)
    assert steps == list(range(at - at % 3 + 1, 13))
    assert found.facts is not None
    assert uninterrupted.facts is not None
    assert found.facts.n_tokens == uninterrupted.facts.n_tokens
    assert not list((tmp_path / "healing").iterdir())


def test_a_mask_is_healed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path))
    model = tiny_model("llama")
    runs: list[int] = []
    monkeypatch.setattr(healed_module, "Healing", _counted(runs))

    def healed(kv_heads: KVHeads = KV_HEADS, recipe: Recipe = FEW, seed: int = 0) -> Healed:
        return heal(convertible_of(model), kv_heads, texts(24, seed=seed), recipe, fingerprint="f")

    first = healed()
    assert same(healed(), first)
    assert healed() is not first
    assert len(runs) == 1
    for changed in (healed((1, 4, 4)), healed(recipe=Recipe(12, 32)), healed(seed=1)):
        assert changed.facts is not None
    assert len(runs) == 4
    again = heal(
        convertible_of(model), KV_HEADS, texts(24), FEW, fingerprint="f", again=first.place
    )
    assert len(runs) == 5
    assert same(again, first)


def _counted(runs: list[int]) -> Callable[..., Healing]:
    def make(*args: Any, **options: Any) -> Healing:
        runs.append(1)
        return Healing(*args, **options)

    return make


def test_a_broken_state_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path))
    model = tiny_model("llama")

    def interrupt(step: Step) -> None:
        raise _Interrupted

    with pytest.raises(_Interrupted):
        heal(convertible_of(model), KV_HEADS, TEXTS, FEW, fingerprint="f", watch=interrupt)
    (state,) = (tmp_path / "healing").glob("*/state.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    found = heal(convertible_of(model), KV_HEADS, TEXTS, FEW, fingerprint="f")
    assert same(found, heal(convertible_of(model), KV_HEADS, TEXTS, FEW))


def most_rows(healing: Healing) -> Lesson:
    return max(healing._lessons, key=lambda lesson: len(lesson.batch.tokens))


def gradients(model: PreTrainedModel, *, checkpointing: bool = False) -> dict[str, Tensor]:
    text = healing_text(TEXTS, 64, 128)
    family = family_of(model.config.model_type)
    healing = Healing(model, family, merged(model), text, FEW, checkpointing=checkpointing)
    healing._gradients(most_rows(healing))
    found = {}
    for name, master in healing._masters.items():
        assert master.grad is not None
        found[name] = master.grad
    return found


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_gradient_is_that_of_the_divergence_through_the_whole_model(model_type: str) -> None:
    """Against autograd through stock logits and torch's own KL divergence."""
    model, family = tiny_model(model_type), family_of(model_type)
    found = gradients(model)
    batches = healing_text(TEXTS, 64, 128).training
    batch = max(batches, key=lambda batch: len(batch.tokens)).to(DEVICE)
    wanted = logits(model, batch.tokens)[batch.real].log_softmax(-1)
    attentions = {n: family.attention(family.blocks(model)[n]) for n in merged(model)}
    names = {id(module): name for name, module in model.named_modules()}
    leaves: dict[str, Tensor] = {}
    parameters: dict[str, Tensor] = {}
    for layer, weights in merged(model).items():
        tensors: Any = {k: v.clone().requires_grad_() for k, v in weights.tensors().items()}
        leaves |= {f"{layer}.{name}": tensor for name, tensor in tensors.items()}
        replaced = type(weights)(**tensors, rope=weights.rope, has_qk_norm=weights.has_qk_norm)
        prefix = names[id(attentions[layer])]
        packed = family.pack(replaced.replicated(4))
        parameters |= {f"{prefix}.{name}": tensor for name, tensor in packed.items()}
    output = torch.func.functional_call(model, parameters, (batch.tokens,))
    after = output.logits[batch.real].log_softmax(-1)
    loss = kl_div(after, wanted, reduction="sum", log_target=True) / len(after)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_checkpointing_and_parts_give_the_same_gradient(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(tiny_model(model_type))
    for name, gradient in gradients(tiny_model(model_type), checkpointing=True).items():
        torch.testing.assert_close(gradient, expected[name])
    model = tiny_model(model_type)
    text = healing_text(TEXTS, 64, 128)
    healing = Healing(model, family_of(model_type), merged(model), text, FEW, checkpointing=False)
    whole, sizes = healing._behind, []

    def short_of_memory(lesson: Any) -> Tensor:
        sizes.append(len(lesson.batch.tokens))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return whole(lesson)

    monkeypatch.setattr(healing, "_behind", short_of_memory)
    lesson = most_rows(healing)
    healing._step(lesson)
    assert max(sizes[-2:]) <= 2
    for name, master in healing._masters.items():
        assert master.grad is not None
        scale = float(master.grad.norm() / expected[name].norm())  # clipped together
        torch.testing.assert_close(master.grad, scale * expected[name], atol=1e-5, rtol=1e-2)
    assert not any(block.__dict__.get("forward") for block in family_of(model_type).blocks(model))


def test_without_memory_for_a_single_row_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    text = healing_text(TEXTS, 64, 128)
    healing = Healing(model, family_of("llama"), merged(model), text, FEW, checkpointing=False)

    def no_memory(_: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(healing, "_behind", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        healing._step(healing._lessons[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_masters_are_float32(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    found = heal(convertible_of(model), KV_HEADS, TEXTS, Recipe(40, batch_tokens=128))
    assert found.facts is not None
    assert found.facts.after < found.facts.before
    assert {each.q.dtype for each in found.layers.layers.values()} == {dtype}


def test_memory_is_counted_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    text = healing_text(TEXTS, 64, 128)
    needed = need(model, family_of("llama"), merged(model, (1, 1, 1)), text)
    least = needed.on_device(checkpointing=True)
    assert least < needed.on_device(checkpointing=False)
    chosen: list[bool] = []

    def noted(*args: Any, checkpointing: bool) -> Healing:
        chosen.append(checkpointing)
        return Healing(*args, checkpointing=checkpointing)

    monkeypatch.setattr(healed_module, "Healing", noted)
    for free in (10**12, 2 * least + needed.teacher, least - 1):
        monkeypatch.setattr(
            "mqasearch.healing.memory_needed.free_bytes", lambda device, free=free: free
        )
        if free < least:
            with pytest.raises(UserError, match=r"takes about .* GB .* are free: give less text"):
                heal(convertible_of(model), (1, 1, 1), TEXTS, FEW)
        else:
            heal(convertible_of(model), (1, 1, 1), TEXTS, FEW)
    assert chosen == [False, True]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs 12 or more; there are 11: allow more"):
        heal(convertible_of(tiny_model("llama")), KV_HEADS, TEXTS[:11], FEW)


@pytest.mark.parametrize(("given", "steps"), [("auto", AUTO_STEPS), ("100", 100), (7, 7), ("0", 0)])
def test_steps_are_a_number_or_auto(given: str | int, steps: int) -> None:
    assert recipe_of(given).n_steps == steps


@pytest.mark.parametrize("given", ["", "-1", "1.5", "many", "²", "12345678", -3])
def test_other_steps_are_refused(given: str | int) -> None:
    with pytest.raises(UserError, match=r"number of steps.*auto"):
        recipe_of(given)


def test_progress_tells_loss_and_time_left() -> None:
    told: list[Step] = []
    heal(convertible_of(tiny_model("llama")), KV_HEADS, TEXTS, FEW, watch=told.append)
    assert [step.step for step in told] == list(range(1, 13))
    assert all(step.loss > 0 and step.held_out > 0 for step in told)
    assert told[-1].seconds_left == 0
    assert told[0].seconds_left > 0


def test_a_place_is_told() -> None:
    found = heal(convertible_of(tiny_model("llama")), KV_HEADS, TEXTS, FEW)
    assert found.place == Place(DEVICE.type, torch.get_num_threads())
