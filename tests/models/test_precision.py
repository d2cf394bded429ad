"""Devices and dtypes by name."""

import pytest
import torch

from mqasearch.errors import ModelError
from mqasearch.models import DTYPES, device_of, dtype_of

CPU = torch.device("cpu")


def with_abilities(monkeypatch, **abilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "mps:1", "cudax"]
)
def test_an_unknown_device_is_answered_with_the_known_ones(name):
    with pytest.raises(ModelError, match=r"known: auto, cpu, cuda, cuda:N, mps$"):
        device_of(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps"])
def test_an_absent_device_is_one_line_with_what_to_do(name, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"absent.*--device auto") as error:
        device_of(name)
    assert "\n" not in str(error.value)


def test_auto_prefers_cuda_then_mps_then_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("auto") == torch.device("mps") == device_of("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda", 0)
    assert device_of("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", DTYPES)
def test_a_named_dtype_is_taken_as_it_is(name):
    assert str(dtype_of(name, CPU)) == f"torch.{name}"


def test_an_unknown_dtype_is_answered_with_the_known_ones():
    with pytest.raises(ModelError, match="known: auto, float32, bfloat16, float16"):
        dtype_of("fp8", CPU)


@pytest.mark.parametrize("ability", ["avx512_bf16", "amx_tile"])
def test_auto_is_bfloat16_where_the_processor_has_it(ability, monkeypatch):
    with_abilities(monkeypatch, avx2=True, **{ability: True})
    assert dtype_of("auto", CPU) == torch.bfloat16


def test_auto_is_float32_elsewhere(monkeypatch):
    with_abilities(monkeypatch, avx2=True, avx512_f=True, avx512_bf16=False)
    assert dtype_of("auto", CPU) == torch.float32
    assert dtype_of("auto", torch.device("mps")) == torch.float32
