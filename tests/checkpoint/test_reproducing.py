"""Converted folders built again: identical bit for bit, on as many threads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mqasearch import api
from mqasearch.checkpoint.reproduce_json import read_record
from mqasearch.checkpoint.reproducing import reproduce
from mqasearch.conversion import calibration
from mqasearch.merging import threads
from mqasearch.merging.aligned import Aligned
from mqasearch.scoring import scorers
from tests.checkpoint.changed_folder import WEIGHTS
from tests.checkpoint.converting import mask_for, original
from tests.models.checkpoints import tokenizer as byte_level

MEAN = {"name": "mean"}
ALIGNED = {"name": "aligned"}
KINDS: list[tuple[dict[str, Any], str | None]] = [
    (MEAN, None),
    ({"name": "first"}, None),
    ({"name": "best"}, None),
    (MEAN | {"refit": True}, None),
    (MEAN | {"refit": True}, "sequential"),
    (ALIGNED, None),
    (ALIGNED, "sequential"),
    (ALIGNED, "none"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("merge", "refit"), KINDS, ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_merge_refit_and_dtype_is_built_again_bit_for_bit(
    n_threads: int, merge: dict[str, Any], refit: str | None, dtype: str, folder: Path
) -> None:
    """On as many threads as the first time, however many there are otherwise."""
    mask = mask_for(folder / "model", folder / "mask.json", merge)
    with threads(n_threads):
        api.convert(mask, folder / "out", refit=refit, dtype=dtype)
    with threads(3 - n_threads):
        found = reproduce(folder / "out")
        assert torch.get_num_threads() == 3 - n_threads
    assert found.identical, found
    assert {WEIGHTS, "mask.json", "config.json", "tokenizer.json"} <= set(found.files)
    assert not {"reproduce.json", "README.md"} & set(found.files)


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "qwen2"])
@pytest.mark.parametrize("name", ["hf", "expanded"])
def test_formats_families_and_shards(name: str, model_type: str, folder: Path) -> None:
    original(folder / model_type, model_type)
    options = {"format": name, "max_shard_bytes": 20_000, "dtype": "bfloat16"}
    api.convert((1, 4, 2), folder / "out", model=folder / model_type, **options)
    found = reproduce(folder / "out")
    assert found.identical, found
    assert len([file for file in found.files if file.endswith(".safetensors")]) > 1


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_file_for_llama_cpp(outtype: str, folder: Path) -> None:
    original(folder / "qwen2", "qwen2")
    byte_level().save_pretrained(folder / "qwen2")  # llama.cpp knows no tokenizer of whole words
    options = {"format": "gguf", "outtype": outtype}
    api.convert((1, 4, 2), folder / "out", model=folder / "qwen2", **options)
    found = reproduce(folder / "out")
    assert found.identical, found
    assert set(found.files) == {"mask.json", "model.gguf"}


@pytest.fixture
def threads_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Function → on how many threads it has run.

    Looked at here, since it depends on sizes and processor whether sums then round differently.
    """
    seen: dict[str, set[int]] = {}

    def watch(module: Any, name: str) -> None:
        run = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_num_threads())
            return run(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(calibration, "moments")
    watch(calibration, "refit_layers")
    watch(scorers, "refit_sequential")
    watch(Aligned, "merge")
    return seen


@pytest.mark.parametrize("refit", ["parallel", "sequential", "none"])
def test_it_is_built_on_as_many_threads_as_the_first_time(
    refit: str, folder: Path, threads_of: dict[str, set[int]]
) -> None:
    mask = mask_for(folder / "model", folder / "mask.json", ALIGNED)
    with threads(2):
        api.convert(mask, folder / "out", refit=refit)
    first = dict(threads_of)
    assert set().union(*first.values()) == {2}
    threads_of.clear()
    with threads(1):
        assert reproduce(folder / "out").identical
    assert threads_of == first


def test_a_calibration_of_another_process_is_computed_again_as_it_was_there(
    folder: Path, threads_of: dict[str, set[int]]
) -> None:
    """The cache hands numbers on to processes that might have rounded otherwise."""
    mask = mask_for(folder / "model", folder / "mask.json", ALIGNED)
    with threads(2):
        api.convert(mask, folder / "first", refit="none")  # its moments only
    with threads(1):
        api.convert(mask, folder / "out")
    computed = read_record(folder / "out")["computed"]
    on_one, on_two = ({"device": "cpu", "threads": number} for number in (1, 2))
    assert computed["calibration"] == {
        "moments": on_two,
        "fitted to 1": on_one,
        "fitted to 2": on_one,
    }
    shutil.rmtree(folder / "cache" / "calibration")
    threads_of.clear()
    with threads(2):
        assert reproduce(folder / "out").identical
    assert (threads_of["moments"], threads_of["refit_layers"]) == ({2}, {1})
    assert not (folder / "cache" / "calibration").exists()
