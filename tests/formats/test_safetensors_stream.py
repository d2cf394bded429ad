"""Our stream of tensors against the safetensors library as the reader."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mqasearch.formats.safetensors_stream import Entry, write_sharded

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
lists = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=8)


def entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tensor.dtype, tuple(tensor.shape))


@given(described=lists, max_shard_bytes=st.integers(1, 400))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_library_reads_what_was_written(
    described: list[tuple[tuple[int, ...], torch.dtype]],
    max_shard_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {
        f"t{index}": (torch.randn(shape) * 9).to(dtype)
        for index, (shape, dtype) in enumerate(described)
    }
    entries = [entry(name, tensor) for name, tensor in tensors.items()]

    written = list(write_sharded(folder, entries, tensors.values(), max_shard_bytes))

    assert written == entries
    files = sorted(folder.glob("*.safetensors"))
    read = {name: t for file in files for name, t in load_file(file).items()}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(read[name].dtype == tensors[name].dtype for name in tensors)
    assert [file.name for file in files] == ["model.safetensors"] or (
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        == {name: file.name for file in files for name in load_file(file)}
    )


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    view = torch.arange(12.0).view(3, 4).T[1:]
    list(write_sharded(tmp_path, [entry("view", view)], [view], 10**6))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["view"], view)


def test_only_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    entries = [Entry(f"t{index}", torch.float32, (100,)) for index in range(10)]
    alive: list[weakref.ref[Tensor]] = []

    def made() -> Iterator[Tensor]:
        for _ in entries:
            assert sum(reference() is not None for reference in alive) == 0
            tensor = torch.zeros(100)
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    assert len(list(write_sharded(tmp_path, entries, made(), 1000))) == 10


def test_a_tensor_that_was_not_announced_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        list(write_sharded(tmp_path, [Entry("t", torch.float32, (2,))], [torch.zeros(3)], 100))
