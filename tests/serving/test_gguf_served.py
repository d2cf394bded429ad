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

from mqasearch.models import LoadedModel
from mqasearch.serving.convert import convert_checkpoint
from mqasearch.serving.formats import Options
from tests.models.checkpoints import tokenizer
from tests.serving.gguf_models import GGUF, KV_HEADS, converted_of, expected, model_of
from tests.tiny import tiny_tokens

SERVER = Path(__file__).parent / "llama_server.py"


def complete(address: str, prompt: list[int]) -> list[int]:
    body = {"prompt": prompt, "n_predict": 6, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
    return tokens


def up_to_end(tokens: list[int]) -> list[int]:
    """A server stops after the end of the text, token 2."""
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


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
    program, *arguments = shlex.split(serving.code.replace("FOLDER", str(out)))
    assert program == "llama-server"
    # as long a prompt twice, then one that begins as it does: what is in the cache is taken up
    tokens = tiny_tokens(batch=1, length=20)
    wanted = [
        up_to_end(expected(converted_of(model), part, 6).greedy[0])
        for part in (tokens, tokens[:, :9])
    ]
    with subprocess.Popen(
        [sys.executable, SERVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().decode().strip()
            prompts = [tokens[0].tolist(), tokens[0].tolist(), tokens[0, :9].tolist()]
            answers = [complete(address, prompt) for prompt in prompts]
        finally:
            server.kill()
    assert answers == [wanted[0], wanted[0], wanted[1]]
