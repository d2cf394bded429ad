"""Drives vLLM in this process: with its own scheduler, cache and attention, without a server."""

import os
import random
from typing import Any

import driver


def load(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Start vLLM with one model; see ``Settings`` in engine.py."""
    _before_import(settings["n_threads"])
    import vllm
    from vllm.platforms import current_platform

    model = Model(vllm.LLM(**_arguments(settings), **_for_device(current_platform.is_cpu())))
    known = (model.log_probs, model.generate, model.cache_bytes_per_token, model.time)
    return vllm.__version__, {ask.__name__: ask for ask in known}


def _before_import(n_threads: int | None) -> None:
    """Set the environment variables that vLLM and torch read when they are imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the cache is read from this process
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if n_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def _arguments(settings: dict[str, Any]) -> dict[str, Any]:
    tokens, batch_size = settings["max_tokens"], settings["batch_size"]
    return {
        "model": settings["model"],
        "trust_remote_code": settings["trust_remote_code"],
        "skip_tokenizer_init": True,
        "dtype": settings["dtype"],
        "max_model_len": tokens,
        "max_num_seqs": batch_size,
        # a whole batch of prompts in one step, so that no prompt waits while another decodes
        "max_num_batched_tokens": tokens * batch_size,
        "enable_prefix_caching": False,  # a repeated prompt must take as long as a new one
        "disable_log_stats": False,  # the times of a request are in the stats
        "seed": 0,
    }


def _for_device(is_cpu: bool) -> dict[str, Any]:
    """Further arguments for CPUs.

    Without them vLLM would compile for minutes, and its cache would take half of the memory.
    """
    if not is_cpu:
        return {}
    if "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return {"enforce_eager": True}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"enforce_eager": True, "kv_cache_memory_bytes": memory // 8}


class Model:
    """A loaded model's answers to requests; tokens are lists of ids."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def log_probs(self, tokens: list[list[int]]) -> list[list[float]]:
        outputs = self._run(tokens, 1, prompt_logprobs=0)
        return [
            [float(among[token].logprob) for token, among in zip(prompt[1:], found, strict=True)]
            for prompt, output in zip(tokens, outputs, strict=True)
            for found in [output.prompt_logprobs[1:]]
        ]

    def generate(self, tokens: list[list[int]], n_tokens: int) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in self._run(tokens, n_tokens)]

    def cache_bytes_per_token(self) -> float:
        """Bytes per token of the memory that was allocated for the cache, with its padding.

        A token takes its share of a block once per group of layers. A model with both sliding and
        full attention has several groups, which take their blocks from the same memory.
        """
        cache = self._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
        (n_bytes,) = self._llm.collective_rpc(_cache_bytes)
        tokens = [group.kv_cache_spec.block_size for group in cache.kv_cache_groups]
        return float(sum(n_bytes / cache.num_blocks / each for each in tokens))

    def time(self, context: int, batch_size: int, n_tokens: int) -> dict[str, float]:
        """Seconds by vLLM's own clock; the prompt gives one more token."""
        n_words = self._llm.llm_engine.model_config.get_vocab_size()
        drawn = random.Random(0)  # noqa: S311 - prompts, not secrets
        prompts = [[drawn.randrange(n_words) for _ in range(context)] for _ in range(batch_size)]
        stats = [output.metrics for output in self._run(prompts, n_tokens + 1)]
        start = min(each.scheduled_ts for each in stats)
        first = max(each.first_token_ts for each in stats)
        last = max(each.last_token_ts for each in stats)
        return {"prefill": first - start, "decode": (last - first) / n_tokens}

    def _run(self, tokens: list[list[int]], n_tokens: int, **options: Any) -> list[Any]:
        from vllm import SamplingParams

        greedy = SamplingParams(
            temperature=0.0, max_tokens=n_tokens, ignore_eos=True, detokenize=False, **options
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in tokens]
        return list(self._llm.generate(prompts, greedy, use_tqdm=False))


def _cache_bytes(worker: Any) -> int:
    """Bytes of all memory of the cache's tensors; memory that layers share counts once."""
    memory = [tensor.untyped_storage() for tensor in worker.model_runner.kv_caches]
    return sum({each.data_ptr(): each.nbytes() for each in memory}.values())


if __name__ == "__main__":
    driver.serve(load)
