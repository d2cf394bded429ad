"""What all layers at one KV head gain in llama.cpp where the prompt is long.

    python engines/long_context.py                     as llama.cpp is installed, about 8 minutes
    python engines/long_context.py --flash off

``mqasearch latency`` evaluates the prompt anew in every run. Here it is evaluated once for each of
the two models and kept; then they decode in turns. Needs the package xllamacpp beside mqasearch.
"""

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import xllamacpp
from rich.progress import track

from mqasearch.checkpoint import Checkpoint, convert_checkpoint
from mqasearch.formats import Options
from mqasearch.models import load_model

FLASH = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


def main() -> None:
    """Write both models, evaluate the prompt in each, decode in turns, print the ratio."""
    arguments = _arguments()
    loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
    shape = loaded.shape
    n_tokens = arguments.context + arguments.n_tokens + 1
    draw = random.Random(0)
    prompt = [draw.randrange(100, 1000) for _ in range(arguments.context)]
    with tempfile.TemporaryDirectory() as place:
        bytes_read, servers = {}, {}
        for name, kv_heads in (("original", shape.original), ("all", (1,) * shape.n_layers)):
            written = convert_checkpoint(
                kv_heads, loaded, Path(place, name), format="gguf", options=Options(outtype="f16")
            )
            cache = shape.kv_bytes_per_token(kv_heads) * 2 // shape.bytes_per_element  # in float16
            bytes_read[name] = written.weight_bytes + cache * arguments.context
            servers[name] = _server(written, n_tokens, arguments)
            _decode(servers[name], prompt, 1)
        rounds: dict[str, list[float]] = {name: [] for name in servers}
        for turn in track(range(arguments.rounds), "decoding in turns"):
            for name in sorted(servers, reverse=bool(turn % 2)):
                rounds[name].append(_decode(servers[name], prompt, arguments.n_tokens))
    ratios = [one / other for one, other in zip(rounds["original"], rounds["all"], strict=True)]
    for name, seconds in rounds.items():
        print(f"{name}: {1000 * median(seconds):.1f} ms a token")
    print(
        f"flash attention {arguments.flash}, {arguments.context} tokens, {arguments.threads} "
        f"threads: {median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] times as fast; "
        f"bytes allow {bytes_read['original'] / bytes_read['all']:.2f}"
    )


def _server(written: Checkpoint, n_tokens: int, arguments: argparse.Namespace) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(next(written.folder.glob("*.gguf")))
    params.n_parallel, params.n_ctx = 1, n_tokens
    params.flash_attn_type = FLASH[arguments.flash]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.fit_params, params.cache_ram_mib = False, 0
    return xllamacpp.Server(params)


def _decode(server: Any, prompt: list[int], n_tokens: int) -> float:
    """Seconds a step, by llama.cpp's clock; the first token comes with the prompt."""
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": n_tokens + 1,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": True,
        }
    )
    timings = answer["timings"]
    return float(timings["predicted_ms"]) / 1000 / (timings["predicted_n"] - 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=8128)
    parser.add_argument("--n-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash", choices=list(FLASH), default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
