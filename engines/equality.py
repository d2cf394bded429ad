"""Does a stock engine compute what transformers computes, with the smaller cache in fact?

    make engines                                     every engine, format and family that is claimed
    python engines/equality.py --engine vllm --format hf --model llama

For each claim (a format's ``serving`` says which engines load which model types) the checkpoint
is written, loaded by the engine in its own environment, and compared with transformers' forward of
the original in which the same layers are merged: log-probabilities of all tokens of some prompts,
greedy continuations, and the bytes of cache a token takes in the engine. Real weights are those of
SmolLM2-135M; every claimed model type is tried with small random weights too.
"""

import argparse
import copy
import gc
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from random_models import random_model, whole_tokens
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.engines import ENGINES, Engine, Settings
from mqasearch.errors import UserError
from mqasearch.families import family_of
from mqasearch.formats import FORMATS, Options
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model

REAL = "smollm2-135m"
TOLERANCE = 1e-3  # of a log-probability, in float32
CACHE_TOLERANCE = 0.02  # of the bytes a token takes
N_TOKENS = 24  # of a greedy continuation
PROMPTS = (
    "The capital of France is Paris. The capital of Germany is",
    "In 1969, three astronauts flew to the Moon. Two of them, Armstrong and Aldrin, walked on it,",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n\nprint(mean([1, 20, 300]))  #",
)


@dataclass(frozen=True)
class Result:
    """One engine with one checkpoint beside transformers.

    Attributes:
        difference: the largest of any log-probability.
        n_equal: greedy tokens that are transformers' own choice.
        n_tokens: greedy tokens in all.
        worst_choice: how much less likely than transformers' choice an engine's token was at most.
        cache: bytes a token takes in the engine.
        counted: bytes that a token should take.
    """

    engine: str
    format: str
    model: str
    difference: float
    n_equal: int
    n_tokens: int
    worst_choice: float
    cache: float
    counted: int
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What is not as claimed."""
        checks = {
            "log-probabilities": self.difference <= TOLERANCE,
            "greedy tokens": self.worst_choice <= 2 * TOLERANCE,  # a tie may fall either way
            "cache": abs(self.cache / self.counted - 1) <= CACHE_TOLERANCE,
        }
        return [name for name, holds in checks.items() if not holds]


@dataclass(frozen=True)
class Subject:
    """A model, some masks of it, and prompts.

    Attributes:
        loaded: what is converted, in float32.
        reference: the same in float64, by transformers' plain attention: in float32 its fast one
            has errors near the tolerance.
    """

    name: str
    loaded: LoadedModel
    reference: PreTrainedModel
    masks: dict[str, KVHeads]
    prompts: list[list[int]]


def main() -> int:
    """Every claim that is asked for; exit code 1 if one does not hold."""
    arguments = _arguments()
    results, failed = [], 0
    for subject in _subjects(arguments.model):
        for engine, written in _claims(subject, arguments.engine, arguments.format):
            for mask, kv_heads in subject.masks.items():
                try:
                    result = compare(subject, mask, kv_heads, engine, written)
                except UserError as error:
                    failed += 1
                    print(f"{engine}, {written}, {subject.name} {mask}: {error}", flush=True)
                    continue
                results.append(result)
                faults = f"  WRONG: {', '.join(result.faults)}" if result.faults else ""
                print(
                    f"{result.engine}, {written}, {result.model}: {result.difference:.1e}, "
                    f"{result.n_equal}/{result.n_tokens}, {result.cache:.0f}/{result.counted}, "
                    f"{result.seconds:.0f} s{faults}",
                    flush=True,
                )
    _print(results)
    wrong = failed + sum(bool(result.faults) for result in results)
    print(f"{len(results) + failed} claims, {wrong} of them do not hold")
    return int(wrong > 0 or not results)


def compare(subject: Subject, mask: str, kv_heads: KVHeads, engine: str, written: str) -> Result:
    """Write the checkpoint, load it in the engine, and ask both the same."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "converted")
        convert_checkpoint(
            kv_heads, subject.loaded, folder, format=written, options=_float32(written)
        )
        model = next(iter(folder.glob("*.gguf")), folder)
        settings = Settings(str(model), max_tokens=256, n_threads=2, trust_remote_code=True)
        with Engine(engine, settings) as running:
            version = running.version
            log_probs = running.log_probs(subject.prompts)
            continued = running.generate(subject.prompts, N_TOKENS)
            cache = running.cache_bytes_per_token()
    family = family_of(subject.reference.config.model_type)
    merged = ConvertibleModel(subject.reference, family, merge_of("mean"))
    with merged.converted(kv_heads):
        difference = max(
            abs(theirs - ours)
            for prompt, row in zip(subject.prompts, log_probs, strict=True)
            for theirs, ours in zip(row, _log_probs(subject.reference, prompt), strict=True)
        )
        behind = [
            lag
            for prompt, tokens in zip(subject.prompts, continued, strict=True)
            for lag in _behind_the_best(subject.reference, prompt, tokens)
        ]
    return Result(
        engine=f"{engine} {version}",
        format=written,
        model=f"{subject.name}, {mask}",
        difference=difference,
        n_equal=sum(lag == 0 for lag in behind),
        n_tokens=len(behind),
        worst_choice=max(behind),
        cache=cache,
        counted=subject.loaded.shape.kv_bytes_per_token(kv_heads),
        seconds=time.perf_counter() - started,
    )


def _distributions(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the next token after each of ``tokens`` [tokens, vocabulary]."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.log_softmax(-1)


def _log_probs(model: PreTrainedModel, tokens: Sequence[int]) -> list[float]:
    rows = _distributions(model, tokens)[:-1]
    chosen: list[float] = rows.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    return chosen


def _behind_the_best(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]
) -> list[float]:
    """How much less likely than the best each token of an engine's continuation is; 0 = the best.

    Each is judged after the engine's own tokens, so one tie does not spoil all that follows.
    """
    rows = _distributions(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    chosen = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    behind: list[float] = (rows.max(-1).values - chosen).tolist()
    return behind


def _float32(written: str) -> Options:
    return Options(outtype="f32" if "f32" in FORMATS[written].outtypes else None)


def _subjects(only: Sequence[str] | None) -> Iterator[Subject]:
    if not only or REAL in only:
        loaded = load_model(REAL, device="cpu", dtype="float32")
        layers = {"5 of 30": (6, 7, 25, 28, 29), "15 of 30": range(1, 30, 2), "all 30": range(30)}
        masks = {name: LayerMask.of(of, 30).kv_heads(loaded.shape) for name, of in layers.items()}
        yield Subject(
            REAL,
            loaded,
            _reference(loaded),
            masks,
            [loaded.tokenizer.encode(text) for text in PROMPTS],
        )
    model_types = sorted({kind for written in FORMATS.values() for kind in written.model_types})
    for model_type in model_types:
        if only and model_type not in only:
            continue
        with tempfile.TemporaryDirectory() as place:
            loaded = random_model(model_type, Path(place))
            shape = loaded.shape
            masks = {"mixed": (shape.n_kv_heads, 1) * (shape.n_layers // 2)}
            generator = torch.Generator().manual_seed(0)
            whole = torch.tensor(whole_tokens(loaded.tokenizer))
            prompts = [
                whole[torch.randint(len(whole), (n,), generator=generator)].tolist()
                for n in (7, 40)
            ]
            yield Subject(model_type, loaded, _reference(loaded), masks, prompts)
        gc.collect()


def _reference(loaded: LoadedModel) -> PreTrainedModel:
    model = copy.deepcopy(loaded.model).double()
    model.set_attn_implementation("eager")
    return model


def _claims(
    subject: Subject, engines: Sequence[str], formats: Sequence[str] | None
) -> Iterator[tuple[str, str]]:
    """Engine and format of every claim about the model's type."""
    model_type = subject.loaded.model.config.model_type
    for written in FORMATS.values():
        if model_type not in written.model_types or (formats and written.name not in formats):
            continue
        claimed = {serving.engine.lower() for serving in written.serving(model_type)}
        yield from ((engine, written.name) for engine in engines if engine in claimed)


def _print(results: Sequence[Result]) -> None:
    table = Table(
        "engine", "format", "model", "largest difference", "greedy tokens", "cache B/token"
    )
    for result in results:
        ratio = f"{result.cache:.0f} of {result.counted}"
        tokens = f"{result.n_equal} of {result.n_tokens}"
        cells = (result.engine, result.format, result.model, f"{result.difference:.1e}")
        table.add_row(*cells, tokens, ratio, style="red" if result.faults else None)
    Console(width=140).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--format", nargs="+", choices=list(FORMATS))
    parser.add_argument("--model", nargs="+", help=f"{REAL}, or model types")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
