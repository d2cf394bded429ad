"""Laws of every family's door: what is read is what the model computes with, and comes back."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.errors import ModelError, UnknownNameError
from mqasearch.families import FAMILIES, AttentionWeights, RopeLayout, family_of
from tests.tiny import GROUPED, HEAD_DIM, MODEL_TYPES, N_HEADS, logits, tiny_model, tiny_tokens

LAYOUTS = [(model_type, N_HEADS) for model_type in MODEL_TYPES] + [
    (model_type, 2) for model_type in GROUPED
]


def attention_of(model: PreTrainedModel, layer: int = 0) -> nn.Module:
    family = family_of(model.config.model_type)
    return family.attention(family.blocks(model)[layer])


def attention_by_hand(weights: AttentionWeights, x: Tensor, attention: nn.Module) -> Tensor:
    """Causal attention [tokens, D] of one sequence x [tokens, D], in plain formulas."""

    def project(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.einsum("hdD,tD->htd", weight, x)
        return out if bias is None else out + bias[:, None, :]

    q = project(weights.q, weights.q_bias)
    k = project(weights.k, weights.k_bias)
    v = project(weights.v, weights.v_bias)
    if weights.has_qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = turn(q, weights.rope), turn(k, weights.rope)
    group = weights.n_heads // weights.n_kv_heads
    out = torch.zeros(x.shape[0], weights.hidden_size)
    window = getattr(attention, "sliding_window", None)
    window = window or getattr(attention.config, "sliding_window", None) or math.inf
    if getattr(attention.config, "layer_types", ["sliding_attention"])[0] == "full_attention":
        window = math.inf
    ahead = torch.arange(len(x))[:, None] - torch.arange(len(x))[None, :]
    hidden = (ahead < 0) | (ahead >= window)
    for head in range(weights.n_heads):
        scores = q[head] @ k[head // group].T / math.sqrt(HEAD_DIM)
        cap = getattr(attention, "attn_logit_softcapping", None)
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        probabilities = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        out += probabilities @ v[head // group] @ weights.o[:, head].T
    return out if weights.o_bias is None else out + weights.o_bias


def turn(states: Tensor, rope: RopeLayout) -> Tensor:
    """RoPE as the complex turn of each pair, [heads, tokens, d]."""
    turned = states.clone()
    for pair, (real, imaginary) in enumerate(rope.pairs):
        angle = torch.arange(states.shape[1]) * 10000.0 ** (-2 * pair / rope.rotary_dims)
        z = torch.complex(states[..., real], states[..., imaginary]) * torch.exp(1j * angle)
        turned[..., real], turned[..., imaginary] = z.real, z.imag
    return turned


@pytest.mark.parametrize(("model_type", "n_kv_heads"), LAYOUTS)
def test_the_weights_read_explain_the_layers_output(model_type: str, n_kv_heads: int) -> None:
    model = tiny_model(model_type, n_kv_heads=n_kv_heads)
    attention = attention_of(model)
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict, output: tuple) -> None:
        seen["x"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen["out"] = output[0]

    attention.register_forward_hook(look, with_kwargs=True)
    logits(model, tiny_tokens(batch=1))
    weights = family_of(model_type).read(attention)

    with torch.no_grad():
        expected = attention_by_hand(weights, seen["x"][0], attention)
    assert weights.n_kv_heads == n_kv_heads
    torch.testing.assert_close(seen["out"][0], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "n_kv_heads"), LAYOUTS)
def test_packing_is_the_inverse_of_unpacking(model_type: str, n_kv_heads: int) -> None:
    family = family_of(model_type)
    attention = attention_of(tiny_model(model_type, n_kv_heads=n_kv_heads))

    packed = family.pack(family.read(attention))

    parameters = family.parameters(attention)
    assert packed.keys() == parameters.keys()
    assert all(torch.equal(packed[name], parameters[name]) for name in packed)
    assert parameters.keys() == {
        name for name, _ in attention.named_parameters() if "norm" not in name
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_writing_installs_new_parameters_and_the_old_ones_can_come_back(model_type: str) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)
    family, attention = family_of(model_type), attention_of(model)
    originals = family.parameters(attention)
    copies = {name: parameter.clone() for name, parameter in originals.items()}
    other = family.read(attention_of(tiny_model(model_type, seed=1)))

    family.write(attention, other)
    changed = logits(model, tokens)
    read_back = family.read(attention)
    family.install(attention, originals)

    assert not torch.equal(changed, before)
    assert all(torch.equal(read_back.tensors()[n], t) for n, t in other.tensors().items())
    assert all(torch.equal(originals[name], copy) for name, copy in copies.items())
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rope_layout_names_every_dimension_that_the_position_turns(model_type: str) -> None:
    rope = family_of(model_type).read(attention_of(tiny_model(model_type))).rope
    expected = {"opt": 0, "gpt2": 0, "phi3": HEAD_DIM // 2, "gpt_neox": HEAD_DIM // 2}
    assert rope.rotary_dims == expected.get(model_type, HEAD_DIM)
    assert sorted(sum(rope.pairs, ())) == list(range(rope.rotary_dims))


def test_interleaved_pairs_are_neighbours() -> None:
    assert RopeLayout("interleaved", 4).pairs == ((0, 1), (2, 3))
    assert RopeLayout("half", 4).pairs == ((0, 2), (1, 3))


def test_every_family_is_found_by_its_model_type() -> None:
    assert set(FAMILIES) == set(MODEL_TYPES)


def test_an_unsupported_model_type_is_named_with_the_supported_ones() -> None:
    with pytest.raises(UnknownNameError) as raised:
        family_of("mamba2")
    message = str(raised.value)
    assert "'mamba2'" in message
    assert "\n" not in message
    assert all(model_type in message for model_type in MODEL_TYPES)


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'qwen2'"):
        family_of("qwen_2")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_compact_checkpoint_is_no_source(model_type: str) -> None:
    with pytest.raises(ModelError, match="converted by mqasearch already"):
        family_of(f"{model_type}_mqa")


def test_a_model_that_is_not_built_as_its_type_says_is_refused() -> None:
    model = tiny_model("llama")
    del model.model.layers[1].self_attn.k_proj
    with pytest.raises(ModelError, match="LlamaAttention has no 'k_proj'"):
        family_of("llama").read(attention_of(model, layer=1))


def test_quantised_weights_are_refused() -> None:
    model = tiny_model("llama")
    k_proj = attention_of(model).k_proj
    k_proj.weight = nn.Parameter(k_proj.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="quantised"):
        family_of("llama").read(attention_of(model))


def test_weights_that_do_not_fit_the_layer_are_refused() -> None:
    llama = attention_of(tiny_model("llama"))
    with_bias = family_of("qwen2").read(attention_of(tiny_model("qwen2")))
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        family_of("llama").write(llama, with_bias)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    attention = attention_of(tiny_model("opt"))
    with torch.no_grad():
        attention.k_proj.bias[3] = value
    weights = family_of("opt").read(attention)
    with pytest.raises(ModelError, match=r"layer 0: the attention weight 'k_bias' holds NaN"):
        weights.check_finite("layer 0")
