"""What merging KV heads does to a model's predictions: the figures of merges.md.

KL(original ‖ converted) of the next-token distribution, in nats, mean over the tokens of documents
that no search and no calibration uses, and the negative log-likelihood of those tokens. Every
replacement is the parallel form: computed once, whatever else is converted.

    python benchmarks/merges.py                     all merges, 32k calibration tokens, float32
    python benchmarks/merges.py --merge mean aligned --dtype bfloat16
    python benchmarks/merges.py -f json
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from mqasearch.conversion import ConvertibleModel, calibrate, merge_of
from mqasearch.conversion.token_batches import TokenBatch, token_batches
from mqasearch.evaluation.calibration import calibration_tokens, right_text
from mqasearch.evaluation.prepared import TaskLibrary
from mqasearch.families import family_of
from mqasearch.mask import LayerMask
from mqasearch.models import LoadedModel, load_model
from mqasearch.score import Documents, TaskSpec

MERGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mean": ("mean", {}),
    "first": ("first", {}),
    "mean+refit": ("mean", {"refit": True}),
    "aligned-refit": ("aligned", {"refit": False}),
    "aligned": ("aligned", {}),
}
"""What the command line calls a merge → its name and parameters."""

LAYERS: tuple[tuple[int, ...], ...] = (
    *((layer,) for layer in (0, 1, 2, 10, 20, 25)),
    (21, 23, 25, 27, 29),
    (25, 26, 27, 28, 29),
    tuple(range(1, 30, 2)),
    tuple(range(30)),
)
"""Sets of layers that go to one KV head: those of the design's table, and those of issue 3."""

BATCH_TOKENS, MAX_LENGTH = 1024, 2048


@dataclass(frozen=True)
class HeldOut:
    """A batch of held-out text and what the original model says of it.

    Attributes:
        batch: the tokens.
        log_probs: [real tokens, vocabulary], of the original.
        following: [real tokens], the next token; -100 behind the last one of a document.
    """

    batch: TokenBatch
    log_probs: Tensor
    following: Tensor


def main() -> None:
    options = _options()
    torch.manual_seed(options.seed)
    loaded = load_model(options.model, dtype=options.dtype)
    library = TaskLibrary()
    calibration = calibration_tokens(
        loaded.tokenizer, [options.task], options.calibration_tokens, seed=options.seed,
        library=library,
    )  # fmt: skip
    text = _held_out_text(loaded, library, options)
    facts = {
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "task": options.task,
        "seed": options.seed,
        "calibration_tokens": sum(map(len, calibration)),
        "held_out_tokens": sum(map(len, text)),
    }
    print(json.dumps(facts), file=sys.stderr, flush=True)
    held_out = [
        HeldOut(batch, _log_probs(loaded, batch), _following(batch))
        for batch in token_batches(text, BATCH_TOKENS, MAX_LENGTH)
    ]
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for label in options.merge:
        began = time.perf_counter()
        convertible = _converted(loaded, label, calibration)
        seconds[label] = time.perf_counter() - began
        n_layers = convertible.shape.n_layers
        for layers in _sets(n_layers):
            mask = LayerMask.of(layers, n_layers)
            with convertible.converted(mask.kv_heads(convertible.shape)):
                kl, nll = _measured(loaded, held_out)
            rows.append({"layers": list(layers), "merge": label, "kl": kl, "nll": nll})
            print(f"{label:14} {_name(layers):24} {kl:.4f}", file=sys.stderr, flush=True)
    result = {
        **facts,
        "rows": rows,
        "conversion_seconds": seconds.get("aligned", max(seconds.values())),
        "seconds": seconds,
    }
    print(json.dumps(result) if options.format == "json" else _table(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--merge", nargs="+", choices=[*MERGES], default=[*MERGES])
    parser.add_argument("--tokens", type=int, default=4096, help="held out, to measure on")
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the documents")
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    return parser.parse_args()


def _held_out_text(
    loaded: LoadedModel, library: TaskLibrary, options: argparse.Namespace
) -> list[list[int]]:
    """Whole documents of the confirmation split, with the right answer, at least so many tokens."""
    documents = Documents("confirmation", seed=options.seed)
    sequences: list[list[int]] = []
    for document in library.task(TaskSpec(options.task), documents).in_order(documents):
        sequences.append(list(loaded.tokenizer.encode(right_text(document))))
        if sum(map(len, sequences)) >= options.tokens:
            break
    return sequences


def _converted(
    loaded: LoadedModel, label: str, calibration: Sequence[Sequence[int]]
) -> ConvertibleModel:
    """Every layer merged to one KV head; nothing is read from a cache, so that time is honest."""
    name, parameters = MERGES[label]
    merge = merge_of(name, **parameters)
    family = family_of(loaded.model.config.model_type)
    statistics = None
    if merge.reads_calibration:
        statistics = calibrate(loaded.model, family, calibration, merge)
    convertible = ConvertibleModel(loaded.model, family, merge, statistics)
    convertible.prepare()
    return convertible


def _sets(n_layers: int) -> list[tuple[int, ...]]:
    """The sets of layers that fit the model."""
    return [layers for layers in LAYERS if max(layers) < n_layers]


def _log_probs(loaded: LoadedModel, batch: TokenBatch) -> Tensor:
    batch = batch.to(loaded.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=batch.tokens, use_cache=False).logits[batch.real]
        log_probs: Tensor = logits.float().log_softmax(-1)
    return log_probs


def _following(batch: TokenBatch) -> Tensor:
    following = torch.full_like(batch.tokens, -100)
    following[:, :-1] = batch.tokens[:, 1:].masked_fill(~batch.real[:, 1:], -100)
    return following[batch.real]


def _measured(loaded: LoadedModel, held_out: Sequence[HeldOut]) -> tuple[float, float]:
    """Mean KL and mean negative log-likelihood over the held-out tokens, in nats."""
    kl = nll = 0.0
    tokens = predicted = 0
    for each in held_out:
        log_probs = _log_probs(loaded, each.batch)
        kl += float(kl_div(log_probs, each.log_probs, reduction="sum", log_target=True))
        following = each.following.to(log_probs.device)
        nll += float(cross_entropy(log_probs, following, reduction="sum"))
        tokens += len(log_probs)
        predicted += int((following >= 0).sum())
    return kl / tokens, nll / predicted


def _name(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return str(layers[0])
    step = layers[1] - layers[0]
    if step == 1 and layers[0] == 0:
        return f"all {len(layers)}"
    between = "–" if step == 1 else f", {layers[1]}, …, "
    return f"{layers[0]}{between}{layers[-1]}"


def _table(result: Mapping[str, Any]) -> str:
    """Markdown: a row per set of layers, a column per merge, KL in the cells."""
    labels = list(result["seconds"])
    kl = {(tuple(row["layers"]), row["merge"]): row["kl"] for row in result["rows"]}
    sets = list(dict.fromkeys(layers for layers, _ in kl))
    lines = [
        f"{result['model']}, {result['dtype']}, {result['task']}, seed {result['seed']}, "
        f"{result['calibration_tokens']:,} calibration tokens, "
        f"{result['held_out_tokens']:,} held-out tokens",
        "",
        f"| layers | {' | '.join(labels)} |",
        f"|---|{'---|' * len(labels)}",
    ]
    for layers in sets:
        cells = " | ".join(f"{kl[layers, label]:.4f}" for label in labels)
        lines.append(f"| {_name(layers)} | {cells} |")
    times = " | ".join(f"{result['seconds'][label]:.0f}" for label in labels)
    lines.append(f"| seconds to convert | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
