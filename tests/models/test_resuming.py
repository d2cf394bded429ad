"""Laws of a model that is run in pieces."""

import pytest
import torch

from mqasearch.families import family_of
from mqasearch.models.resuming import ResumableModel
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

TOKENS = tiny_tokens()


def resumable(model_type: str) -> ResumableModel:
    model = tiny_model(model_type)
    return ResumableModel(model, family_of(model_type).blocks(model))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pieces_give_the_whole(model_type: str) -> None:
    """Boundary after boundary, each from the state before, then the head."""
    model = resumable(model_type)
    hidden = None
    with torch.no_grad():
        for boundary in range(1, 4):
            states = model.run(TOKENS, start=boundary - 1, hidden=hidden, wanted=[boundary])
            assert list(states) == [boundary]
            hidden = states[boundary]
        assert hidden is not None
        found = model.head(hidden.flatten(0, 1)).view(*TOKENS.shape, -1)
    torch.testing.assert_close(found, logits(model.model, TOKENS), atol=1e-5, rtol=1e-4)
    assert model.layer_tokens == 3 * TOKENS.numel()


def test_blocks_behind_the_last_wanted_boundary_are_not_run() -> None:
    model = resumable("llama")
    run: list[int] = []
    for number, block in enumerate(model.blocks):
        block.self_attn.register_forward_hook(lambda *_, number=number: run.append(number))
    model.run(TOKENS, wanted=[2])
    assert run == [0, 1]
    assert not any("forward" in block.__dict__ for block in model.blocks)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_go_through_the_pieces(model_type: str) -> None:
    model = resumable(model_type)
    leaf = model.run(TOKENS, wanted=[1])[1].detach().requires_grad_()
    hidden = model.run(TOKENS, start=1, hidden=leaf, wanted=[3])[3]
    model.head(hidden.flatten(0, 1)).square().sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.abs().sum(-1).ne(0).all())


def test_states_and_logits_keep_no_gradients() -> None:
    model = resumable("llama")
    states = model.states(TOKENS, wanted=[1])
    assert sorted(states) == [1, 3]
    assert not states[3].requires_grad
    assert not model.logits(states[3].flatten(0, 1)).requires_grad
