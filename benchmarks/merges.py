"""What merging KV heads does to a model's predictions: the figures of merges.md.

The figures are KL(original ‖ converted) of the next-token distribution and the negative
log-likelihood of the tokens, in nats. They are means over the tokens of documents that no search
and no calibration uses. Every replacement but ``sequential`` has the parallel form: it is computed
once, and does not depend on the other converted layers.

    python benchmarks/merges.py                     all merges, 32k calibration tokens, float32
    python benchmarks/merges.py --merge mean aligned --dtype bfloat16
    python benchmarks/merges.py --merge aligned --calibration-tokens 8192 32768 65536
    python benchmarks/merges.py --variants          aligned, and what was tried to better it
    python benchmarks/merges.py -f json
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from merge_variants import OF_SEVERAL_LAYERS, VARIANTS, Shared
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from mqasearch.conversion import ConvertibleModel, TokenBatch, calibrate, token_batches
from mqasearch.families import family_of
from mqasearch.mask import LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model
from mqasearch.score import Documents, TaskSpec
from mqasearch.tasks import TaskLibrary, calibration_tokens, right_text

MERGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mean": ("mean", {}),
    "first": ("first", {}),
    "mean+refit": ("mean", {"refit": True}),
    "aligned-refit": ("aligned", {"refit": False, "tune": False}),
    "aligned": ("aligned", {"tune": False}),
    "aligned+tune": ("aligned", {"tune": True}),
}
"""A merge's name on the command line → its name and parameters in the product."""

LAYERS: tuple[tuple[int, ...], ...] = (
    *((layer,) for layer in (0, 1, 2, 10, 20, 25)),
    (6, 7, 25, 28, 29),
    (21, 23, 25, 27, 29),
    (25, 26, 27, 28, 29),
    tuple(range(1, 30, 2)),
    tuple(range(30)),
)
"""Sets of layers that are converted to one KV head: single layers, the best five by KL, and larger
sets."""

Conversion = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Layers → the live model with these converted, for the length of a ``with`` block."""

BATCH_TOKENS, MAX_LENGTH = 1024, 2048


@dataclass(frozen=True)
class HeldOut:
    """A batch of held-out text with the original model's predictions.

    Attributes:
        batch: the tokens.
        log_probs: [real tokens, vocabulary], log-probabilities of the original.
        following: [real tokens], the next token; -100 for the last token of a document.
    """

    batch: TokenBatch
    log_probs: Tensor
    following: Tensor


def main() -> None:
    options = _options()
    torch.manual_seed(options.seed)
    loaded = load_model(options.model, dtype=options.dtype)
    library = TaskLibrary()
    calibrations = {
        n_tokens: calibration_tokens(
            loaded.tokenizer, [options.task], n_tokens, seed=options.seed, library=library
        )
        for n_tokens in options.calibration_tokens
    }
    text = held_out_text(loaded, library, options.task, options.tokens, options.seed)
    facts = {
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "task": options.task,
        "seed": options.seed,
        "calibration_tokens": [sum(map(len, each)) for each in calibrations.values()],
        "held_out_tokens": sum(map(len, text)),
    }
    print(json.dumps(facts), file=sys.stderr, flush=True)
    held_out = batches_of(loaded, text)
    rows: list[dict[str, Any]] = []
    columns: list[dict[str, Any]] = []
    for n_tokens, calibration in calibrations.items():
        shared = Shared(loaded.model, family_of(loaded.model.config.model_type), calibration)
        for label in options.merge:
            if n_tokens != options.calibration_tokens[0] and not _reads_text(label):
                continue
            column, cells = _column(loaded, label, shared, held_out)
            columns.append(column)
            rows.extend(cells)
    result = {
        **facts,
        "rows": rows,
        "conversion_seconds": _conversion_seconds(columns),
        "columns": columns,
    }
    print(json.dumps(result) if options.format == "json" else _table(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="hellaswag")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--merge",
        nargs="+",
        choices=[*MERGES, *VARIANTS],
        default=[*MERGES],
        metavar="MERGE",
        help=f"{', '.join(MERGES)}, or a variant",
    )
    labels.add_argument(
        "--variants",
        dest="merge",
        action="store_const",
        const=["aligned", *VARIANTS],
        help=f"aligned, {', '.join(VARIANTS)}",
    )
    parser.add_argument("--tokens", type=int, default=4096, help="held out, to measure on")
    parser.add_argument(
        "--calibration-tokens", type=int, nargs="+", default=[32_768], help="a column for each"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the documents")
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    options = parser.parse_args()
    options.calibration_tokens = sorted(set(options.calibration_tokens))
    options.merge = list(dict.fromkeys(options.merge))
    return options


def held_out_text(
    loaded: LoadedModel, library: TaskLibrary, task: str, n_tokens: int, seed: int
) -> list[list[int]]:
    """Whole documents of the confirmation split, with the right answer, as token ids.

    There are at least ``n_tokens`` tokens, if the split has so many.
    """
    documents = Documents("confirmation", seed=seed)
    sequences: list[list[int]] = []
    for document in library.task(TaskSpec(task), documents).in_order(documents):
        sequences.append(list(loaded.tokenizer.encode(right_text(document))))
        if sum(map(len, sequences)) >= n_tokens:
            break
    return sequences


def batches_of(loaded: LoadedModel, text: Sequence[Sequence[int]]) -> list[HeldOut]:
    """The text in batches, with the predictions of the unconverted model."""
    return [
        HeldOut(batch, log_probs_of(loaded, batch), next_tokens(batch))
        for batch in token_batches(text, BATCH_TOKENS, MAX_LENGTH)
    ]


def _column(
    loaded: LoadedModel, label: str, shared: Shared, held_out: Sequence[HeldOut]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure one merge with one calibration text: its facts, and a row for each set of layers."""
    n_tokens = sum(map(len, shared.text)) if _reads_text(label) else 0
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    conversion = _conversion(loaded, label, shared)
    seconds = time.perf_counter() - began
    for layers in _sets(len(shared.attentions)):
        if len(layers) == 1 and label in OF_SEVERAL_LAYERS:
            continue
        began = time.perf_counter()
        converted = conversion(layers)
        seconds += time.perf_counter() - began
        with converted:
            kl, nll = measured(loaded, held_out)
        rows.append(
            {
                "layers": list(layers),
                "merge": label,
                "kl": kl,
                "nll": nll,
                "calibration_tokens": n_tokens,
            }
        )
        print(f"{label:14} {n_tokens:6} {name_of(layers):24} {kl:.4f}", file=sys.stderr, flush=True)
    return {"merge": label, "calibration_tokens": n_tokens, "seconds": seconds}, rows


def _conversion(loaded: LoadedModel, label: str, shared: Shared) -> Conversion:
    """Prepare the conversion of any layers to one KV head.

    A merge of the product uses no shared results and no cache, so that its time is complete. A
    variant's time leaves out results that another variant has computed before.
    """
    if label in VARIANTS:
        replacer = VARIANTS[label](shared)
        return lambda layers: shared.installed(replacer(layers))
    name, parameters = MERGES[label]
    merge = merge_of(name, **parameters)
    statistics = None
    if merge.reads_calibration:
        statistics = calibrate(loaded.model, shared.family, shared.text, merge)
    convertible = ConvertibleModel(loaded.model, shared.family, merge, statistics)
    convertible.prepare()
    shape = convertible.shape
    return lambda layers: convertible.converted(
        LayerMask.of(layers, shape.n_layers).kv_heads(shape)
    )


def _reads_text(label: str) -> bool:
    if label in VARIANTS:
        return True
    name, parameters = MERGES[label]
    return merge_of(name, **parameters).reads_calibration


def _conversion_seconds(columns: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of ``aligned`` with the most text if it was measured, else of the slowest merge."""
    aligned = [column["seconds"] for column in columns if column["merge"] == "aligned"]
    return float(aligned[-1] if aligned else max(column["seconds"] for column in columns))


def _sets(n_layers: int) -> list[tuple[int, ...]]:
    """The sets of layers that fit the model."""
    return [layers for layers in LAYERS if max(layers) < n_layers]


def log_probs_of(loaded: LoadedModel, batch: TokenBatch) -> Tensor:
    batch = batch.to(loaded.device)
    with torch.inference_mode():
        logits = loaded.model(input_ids=batch.tokens, use_cache=False).logits[batch.real]
        log_probs: Tensor = logits.float().log_softmax(-1)
    return log_probs


def next_tokens(batch: TokenBatch) -> Tensor:
    following = torch.full_like(batch.tokens, -100)
    following[:, :-1] = batch.tokens[:, 1:].masked_fill(~batch.real[:, 1:], -100)
    return following[batch.real]


def measured(loaded: LoadedModel, held_out: Sequence[HeldOut]) -> tuple[float, float]:
    """Mean KL and mean negative log-likelihood over the held-out tokens, in nats."""
    kl = nll = 0.0
    tokens = predicted = 0
    for each in held_out:
        log_probs = log_probs_of(loaded, each.batch)
        kl += float(kl_div(log_probs, each.log_probs, reduction="sum", log_target=True))
        following = each.following.to(log_probs.device)
        nll += float(cross_entropy(log_probs, following, reduction="sum"))
        tokens += len(log_probs)
        predicted += int((following >= 0).sum())
    return kl / tokens, nll / predicted


def name_of(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return str(layers[0])
    step = layers[1] - layers[0]
    if layers != tuple(range(layers[0], layers[-1] + 1, step)):
        return ", ".join(map(str, layers))
    if step == 1 and layers[0] == 0:
        return f"all {len(layers)}"
    between = "–" if step == 1 else f", {layers[1]}, …, "
    return f"{layers[0]}{between}{layers[-1]}"


def _table(result: Mapping[str, Any]) -> str:
    """A Markdown table of KL: a row per set of layers, a column per merge and calibration text."""
    columns = [(column["merge"], column["calibration_tokens"]) for column in result["columns"]]
    texts = result["calibration_tokens"]
    heads = [
        f"{label}, {n_tokens:,}" if n_tokens and len(texts) > 1 else label
        for label, n_tokens in columns
    ]
    kl = {
        (tuple(row["layers"]), row["merge"], row["calibration_tokens"]): row["kl"]
        for row in result["rows"]
    }
    lines = [
        f"{result['model']}, {result['dtype']}, {result['task']}, seed {result['seed']}, "
        f"{' / '.join(f'{n_tokens:,}' for n_tokens in texts)} calibration tokens, "
        f"{result['held_out_tokens']:,} held-out tokens",
        "",
        f"| layers | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for layers in LAYERS:
        found = [kl.get((layers, *column)) for column in columns]
        cells = ["–" if each is None else f"{each:.4f}" for each in found]
        if any(each is not None for each in found):
            lines.append(f"| {name_of(layers)} | {' | '.join(cells)} |")
    times = " | ".join(f"{column['seconds']:.0f}" for column in result["columns"])
    lines.append(f"| seconds to convert | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
