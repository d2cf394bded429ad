"""A converted file under the command that its card gives, over HTTP."""

import json
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.formats import Options
from mqasearch.models import LoadedModel
from tests.formats.gguf_models import GGUF, KV_HEADS, converted_of, model_of
from tests.models.checkpoints import tokenizer
from tests.tiny import tiny_tokens

SERVER = Path(__file__).parent / "llama_server.py"


def next_token(address: str, prompt: list[int]) -> int:
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        (token,) = json.load(answer)["tokens"]
    return int(token)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("llama", {}), ("qwen3", {}), ("qwen3", {"tie_word_embeddings": True})],
    ids=["deci", "step35", "openelm"],
)
def test_the_command_on_the_card_serves(
    model_type: str, config: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(model_type, **config)
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer(), "tiny/tiny", "0" * 64, cpu, model.dtype)
    out = tmp_path / "out"
    convert_checkpoint(KV_HEADS, loaded, out, format="gguf", options=Options(outtype="f32"))
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "mask.json", "model.gguf", "reproduce.json"}
    (serving,) = GGUF.serving(model_type)
    assert serving.code in (out / "README.md").read_text()
    program, *arguments = shlex.split(serving.code.replace("FOLDER", str(out)), comments=True)
    assert program == "llama-server"
    # a text and then another, each growing: what is in the cache is taken up, or dropped
    texts = tiny_tokens(batch=2, length=12)
    parts = [text[None, :length] for text in texts for length in range(1, len(text) + 1)]
    converted = converted_of(model)
    with torch.no_grad(), converted.convertible.converted(KV_HEADS) as small:
        wanted = [torch.log_softmax(small(part).logits[0, -1], -1) for part in parts]
    with subprocess.Popen(
        [sys.executable, SERVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().decode().strip()
            answers = [next_token(address, part[0].tolist()) for part in parts]
        finally:
            server.kill()
    # the best, or as good but for 16 bits in the cache and in flash attention
    for token, log_probs in zip(answers, wanted, strict=True):
        assert log_probs[token] > log_probs.max() - 0.1
