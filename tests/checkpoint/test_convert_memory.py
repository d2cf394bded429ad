"""Converting streams: memory holds neither the model nor a weights file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.checkpoints import save

FORMATS = ("hf", "gguf", "expanded")
MAX_SHARD_BYTES = 60_000_000
HIDDEN, INTERMEDIATE, N_LAYERS = 1024, 3072, 6
ATTENTION_BYTES = 4 * 4 * HIDDEN**2
MODEL_BYTES = N_LAYERS * (ATTENTION_BYTES + 4 * 3 * HIDDEN * INTERMEDIATE)

CONVERT = """
import json, sys, threading
from pathlib import Path

from mqasearch.models import load_model
from mqasearch.checkpoint.convert import convert_checkpoint
from mqasearch.formats import Options

def convert(source, out):
    loaded = load_model(source, device="cpu", dtype="float32")
    heads = (1,) * loaded.shape.n_layers
    convert_checkpoint(heads, loaded, Path(out), format=written, options=options)

def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

def watch():
    while not over.wait(0.002):
        seen.append(private_bytes())

small, large, out, written, max_shard_bytes = json.loads(sys.argv[1])
options = Options(max_shard_bytes=max_shard_bytes)
convert(small, out + "/small")  # whatever takes memory once, however large the model
seen, over = [private_bytes()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
convert(large, out + "/large")
over.set()
watcher.join()
print(max(seen) - seen[0])
"""
"""Prints by how much the process's own memory grew; mapped files can be dropped at any time."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model of a few kilobytes and one of 330 MB."""
    folders = []
    for name, hidden, intermediate in (("small", 64, 256), ("large", HIDDEN, INTERMEDIATE)):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=16,
            num_key_value_heads=16,
        )
        folder = tmp_path_factory.mktemp("sources") / name
        with torch.random.fork_rng():
            folders.append(str(save(LlamaForCausalLM(config), folder)))
    return folders


@pytest.mark.parametrize("name", FORMATS)
def test_memory_is_bounded_by_a_file_of_weights_and_a_layers_work(
    name: str, sources: list[str], tmp_path: Path
) -> None:
    arguments = json.dumps([*sources, str(tmp_path), name, MAX_SHARD_BYTES])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, arguments], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout.split()[-1])
    bound = 1.3 * MAX_SHARD_BYTES + ATTENTION_BYTES
    assert grown < bound, f"{grown / 1e6:.0f} MB"
    assert bound < MODEL_BYTES / 3  # or the law would allow holding a good part of the model
