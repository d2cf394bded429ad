"""Compact models in memory: the converted model's function, with the original's own tensors."""

import pytest
import torch

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.latency.compact_models import CompactModels
from mqasearch.mask import KVHeads
from mqasearch.merging import merge_of
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

KV_HEADS: KVHeads = (1, 4, 2)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_computes_what_the_converted_model_computes(model_type: str) -> None:
    model = tiny_model(model_type).requires_grad_(False)
    convertible = ConvertibleModel(model, family_of(model_type), merge_of("mean"))
    compact = CompactModels(convertible).model(KV_HEADS)
    with convertible.converted(KV_HEADS):
        expected = logits(model, tiny_tokens())
    torch.testing.assert_close(logits(compact, tiny_tokens()), expected, atol=1e-4, rtol=1e-4)


def test_what_is_not_converted_is_the_originals_and_stays_as_it_was() -> None:
    model = tiny_model("llama").requires_grad_(False)
    before = logits(model, tiny_tokens())
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    models = CompactModels(convertible)
    few, many = models.model((1, 4, 4)), models.model((1, 1, 4))
    own = {
        name
        for name, parameter in few.named_parameters()
        if parameter is not model.get_parameter(name)
    }
    assert own == {f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "kv"}
    for name in own:
        assert few.get_parameter(name) is many.get_parameter(name)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model, tiny_tokens()), before)


def test_nothing_converted_is_the_original_itself() -> None:
    model = tiny_model("gpt2")
    convertible = ConvertibleModel(model, family_of("gpt2"), merge_of("mean"))
    assert CompactModels(convertible).model((4, 4, 4)) is model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_original_in_the_code_of_converted_models_computes_the_same(model_type: str) -> None:
    model = tiny_model(model_type).requires_grad_(False)
    convertible = ConvertibleModel(model, family_of(model_type), merge_of("mean"))
    compact = CompactModels(convertible).model(convertible.shape.original, even_original=True)
    assert type(compact) is not type(model)
    expected = logits(model, tiny_tokens())
    torch.testing.assert_close(logits(compact, tiny_tokens()), expected, atol=1e-4, rtol=1e-4)
