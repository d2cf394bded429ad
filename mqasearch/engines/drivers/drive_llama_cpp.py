"""Drives llama.cpp with the server in the wheel ``xllamacpp``.

The server gives log-probabilities only of tokens that it samples. So a bias on its logit makes each
token of a prompt the next sampled one; the server takes the log-probability from the logits without
the bias. The tokens before it are in the cache already, so this takes one decoding step.

llama.cpp's flash attention on CPUs rounds to 16 bits even if the cache has another type. So in
float32 log-probabilities and tokens are computed without it. The cache and the timings are those
with it, since llama.cpp serves with it: without it the values' cache is padded to the widest
layer's.
"""

import contextlib
import json
import os
import random
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, BinaryIO

import driver
import xllamacpp

_CACHE_TYPES = {
    "float32": xllamacpp.ggml_type.GGML_TYPE_F32,
    "float16": xllamacpp.ggml_type.GGML_TYPE_F16,
    "bfloat16": xllamacpp.ggml_type.GGML_TYPE_BF16,
}
_FLASH = xllamacpp.llama_flash_attn_type
_FORCED = 1e9  # more than any logit
_VERBOSE = 4  # the lowest level at which the sizes of caches are logged
_CACHE_SIZE = re.compile(
    r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers, +(\d+)/"
)
_PRECISE_MIB = 5.0  # the log has two digits after the point
_MOST_SLOTS = 256
_LOG_SECONDS = 30.0


class LlamaCpp:
    """A loaded model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._servers: list[Any] = []
        self._served, self._log = self._load(int(settings["batch_size"]))

    def log_probs(self, tokens: list[list[int]]) -> list[list[float]]:
        return [
            [self._forced(prompt[:end], prompt[end]) for end in range(1, len(prompt))]
            for prompt in tokens
        ]

    def generate(self, tokens: list[list[int]], n_tokens: int) -> list[list[int]]:
        return [self._greedy(prompt, n_tokens) for prompt in tokens]

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenized(text) for text in texts]

    def cache_bytes_per_token(self) -> float:
        """Bytes of the buffers in llama.cpp's log over the number of tokens that they hold."""
        sizes = _cache_sizes(self._log)
        smallest = min(mib * n_sequences for mib, _, n_sequences in sizes)
        if smallest < _PRECISE_MIB:
            n_slots = min(_MOST_SLOTS, int(_PRECISE_MIB / max(smallest, 0.01)) + 1)
            sizes = _cache_sizes(self._load(n_slots)[1])
        return sum(mib * 2**20 / n_cells for mib, n_cells, _ in sizes)

    def time(self, context: int, batch_size: int, n_tokens: int) -> dict[str, float]:
        """llama.cpp's own timings; for a batch, those of the slowest sequence.

        Its clock of decoding starts with the token that the prompt gives, and counts this token.
        """
        if batch_size > self.settings["batch_size"]:
            raise ValueError(f"loaded for {self.settings['batch_size']} sequences at a time")
        draw = random.Random(0)  # noqa: S311
        prompts = [[draw.randrange(3, 1000) for _ in range(context)] for _ in range(batch_size)]

        def run(prompt: list[int]) -> dict[str, float]:
            options = {"ignore_eos": True, "cache_prompt": False}
            answer = _complete(self._served, prompt, n_tokens + 1, **options)
            timings: dict[str, float] = answer["timings"]
            return timings

        with ThreadPoolExecutor(batch_size) as threads:
            timings = list(threads.map(run, prompts))
        return {
            "prefill": max(timing["prompt_ms"] for timing in timings) / 1000,
            "decode": max(timing["predicted_ms"] for timing in timings) / 1000 / n_tokens,
        }

    def _tokenized(self, text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        url = f"{self._served.listening_address}/tokenize"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - a server of this process
            tokens: list[int] = json.load(answer)["tokens"]
        return tokens

    @cached_property
    def _exact(self) -> Any:
        """The server for log-probabilities and tokens."""
        if self.settings["dtype"] != "float32":
            return self._served
        return self._load(1, _FLASH.LLAMA_FLASH_ATTN_TYPE_DISABLED)[0]

    def _load(
        self, n_slots: int, flash: Any = _FLASH.LLAMA_FLASH_ATTN_TYPE_AUTO
    ) -> tuple[Any, str]:
        """A server, and its log while it loaded."""
        params = xllamacpp.CommonParams()
        params.model.path = self.settings["model"]
        params.n_parallel = n_slots
        params.n_ctx = int(self.settings["max_tokens"]) * n_slots
        params.flash_attn_type = flash
        cache_type = _CACHE_TYPES[self.settings["dtype"]]
        params.cache_type_k = params.cache_type_v = cache_type
        if (n_threads := self.settings["n_threads"]) is not None:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
        params.swa_full = True  # else a cache with sliding layers is not used again
        params.fit_params = False  # fail instead of changing the settings to fit the memory
        params.cache_ram_mib = 0
        params.verbosity = _VERBOSE
        with tempfile.TemporaryFile() as log, _stderr_to(log.fileno()):
            server = xllamacpp.Server(params)
            text = _read_until(log, b"model loaded")
        self._servers.append(server)  # a server that is deleted right after its start never ends
        return server, text

    def _forced(self, prompt: list[int], token: int) -> float:
        options = {"n_probs": 1, "logit_bias": [[token, _FORCED]], "cache_prompt": True}
        (said,) = _sampled(_complete(self._exact, prompt, 1, **options))
        assert said["id"] == token, (said, token)
        return float(said["logprob"])

    def _greedy(self, prompt: list[int], n_tokens: int) -> list[int]:
        """Greedy tokens; after an end of text, at which the server stops, they go on."""
        made: list[int] = []
        while len(made) < n_tokens:
            answer = _complete(self._exact, prompt + made, n_tokens - len(made), n_probs=1)
            made += [said["id"] for said in _sampled(answer)]
        return made


@contextlib.contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    stderr = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.lseek(descriptor, 0, os.SEEK_SET)
        while piece := os.read(descriptor, 2**16):
            os.write(2, piece)


def _read_until(log: BinaryIO, line: bytes) -> str:
    """The log once it has the line, which a thread of llama.cpp writes a little later."""
    deadline = time.monotonic() + _LOG_SECONDS
    while True:
        text = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0)
        if line in text:
            return text.decode(errors="replace")
        if time.monotonic() > deadline:
            raise RuntimeError(f"llama.cpp has not logged {line!r} for {_LOG_SECONDS} seconds")
        time.sleep(0.01)


def _complete(server: Any, prompt: list[int], n_tokens: int, **options: Any) -> dict[str, Any]:
    request = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0.0, **options}
    answer = server.handle_completions(request)
    read: dict[str, Any] = answer if isinstance(answer, dict) else json.loads(answer)
    if "choices" not in read:
        raise RuntimeError(str(read))
    return read


def _sampled(answer: dict[str, Any]) -> list[dict[str, Any]]:
    said = answer["choices"][0]["logprobs"]
    if said is None:
        raise RuntimeError("llama.cpp holds back a token that ends within a character")
    tokens: list[dict[str, Any]] = said["content"]
    return tokens


def _cache_sizes(log: str) -> list[tuple[float, int, int]]:
    """(MiB for one sequence, tokens of the sequence, number of sequences) of each cache.

    There are two caches if sliding layers have a cache of their own.
    """
    found = [m for m in _CACHE_SIZE.finditer(log) if int(m[3])]
    return [(float(m[1]) / int(m[4]), int(m[2]), int(m[4])) for m in found]


def _load(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    engine = LlamaCpp(settings)
    return f"xllamacpp {xllamacpp.__version__}", {
        "log_probs": engine.log_probs,
        "generate": engine.generate,
        "cache_bytes_per_token": engine.cache_bytes_per_token,
        "time": engine.time,
        "tokenize": engine.tokenize,
    }


if __name__ == "__main__":
    driver.serve(_load)
