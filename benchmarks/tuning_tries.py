"""What was tried to better ``tune``: text to fit to, and where the fit begins; see merges.md.

Some layers are fitted, each alone. Then all of them are converted together, and KL(original ‖
converted) is measured on held-out documents.

    python benchmarks/tuning_tries.py text          more text, text of other kinds
    python benchmarks/tuning_tries.py start         other closed forms, Gauss–Newton before Adam
    python benchmarks/tuning_tries.py start --layers 7 --tries mean aligned -f json
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from merges import HeldOut, batches_of, held_out_text, measured
from tuning_starts import STARTS, Starts

from mqasearch.conversion import TrainedLayer, calibration_batches, frozen
from mqasearch.conversion.tuning import BATCH_TOKENS, PASSES, _Fit, _split, _Stream
from mqasearch.families import AttentionWeights, family_of
from mqasearch.models import LoadedModel, ResumableModel, load_model
from mqasearch.tasks import TaskLibrary, calibration_tokens

Text = list[list[int]]
OTHERS = ("arc_easy", "commonsense_qa", "mmlu")
LENGTH = 96
"""Tokens per text that the model writes itself; HellaSwag's documents have about as many."""


@dataclass(frozen=True)
class Tried:
    """The layers after a try, with their error and the seconds that it took."""

    layers: Mapping[int, AttentionWeights]
    error: float
    seconds: float


def main() -> None:
    options = _options()
    loaded = load_model(options.model, device=options.device, dtype="float32")
    if options.what == "start":  # Gauss–Newton needs forward-mode derivatives, which sdpa lacks
        loaded.model.set_attn_implementation("eager")
    library = TaskLibrary()
    held_out = {
        task: batches_of(loaded, held_out_text(loaded, library, task, options.tokens, 0))
        for task in options.held_out
    }
    rows = []
    for name in options.tries:
        if options.what == "text":
            tried = _on_text(loaded, TEXTS[name](loaded, library), options.layers)
        else:
            tried = _from_start(loaded, TEXTS["32k"](loaded, library), name, options.layers)
        for stage, found in tried.items():
            kl = _kl(loaded, found.layers, held_out)
            row = {"try": name, "stage": stage, "kl": kl, "error": found.error}
            rows.append({**row, "seconds": found.seconds})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows) if options.format == "json" else _table(rows, options.held_out))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["text", "start"])
    parser.add_argument("--tries", nargs="+", choices=[*TEXTS, *STARTS])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 7, 25, 28, 29])
    parser.add_argument("--held-out", nargs="+", default=["hellaswag", "arc_easy"])
    parser.add_argument("--tokens", type=int, default=3072, help="held out, of each task")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    options = parser.parse_args()
    options.tries = options.tries or [*(TEXTS if options.what == "text" else STARTS)]
    return options


def _of_tasks(n_tokens: int, *tasks: str) -> Callable[[LoadedModel, TaskLibrary], Text]:
    return lambda loaded, library: calibration_tokens(
        loaded.tokenizer, tasks, n_tokens, library=library
    )


def _own_words(loaded: LoadedModel, _: TaskLibrary) -> Text:
    """Texts sampled from the model, each beginning with the bos token."""
    torch.manual_seed(0)
    first = loaded.tokenizer.bos_token_id
    n_texts = 32_768 // LENGTH
    begun = torch.full((n_texts, 1), first, device=loaded.device)
    texts = loaded.model.generate(  # type: ignore[operator]
        begun,
        attention_mask=torch.ones_like(begun),  # else the bos token counts as padding
        do_sample=True,
        top_k=0,
        min_new_tokens=LENGTH - 1,
        max_new_tokens=LENGTH - 1,
        pad_token_id=first,
    )
    return [list(map(int, text)) for text in texts]


TEXTS: Mapping[str, Callable[[LoadedModel, TaskLibrary], Text]] = {
    "16k": _of_tasks(2**14, "hellaswag"),
    "32k": _of_tasks(2**15, "hellaswag"),
    "64k": _of_tasks(2**16, "hellaswag"),
    "128k": _of_tasks(2**17, "hellaswag"),
    "others": _of_tasks(2**15, *OTHERS),
    "all four": _of_tasks(2**15, "hellaswag", *OTHERS),
    "own words": _own_words,
}
"""A text's name on the command line → the function that returns its token ids."""


def _on_text(loaded: LoadedModel, text: Text, layers: Sequence[int]) -> dict[str, Tried]:
    """Run the product's ``aligned`` and ``tune`` on this text."""
    starts = Starts(loaded, text)
    return _stages(loaded, text, starts, starts.aligned(layers))


def _from_start(
    loaded: LoadedModel, text: Text, name: str, layers: Sequence[int]
) -> dict[str, Tried]:
    starts = Starts(loaded, text)
    return _stages(loaded, text, starts, STARTS[name](starts, layers))


def _stages(
    loaded: LoadedModel, text: Text, starts: Starts, merged: Mapping[int, AttentionWeights]
) -> dict[str, Tried]:
    """The layers as merged, and after tuning that starts from them."""
    began = time.perf_counter()
    model, family = loaded.model, family_of(loaded.model.config.model_type)
    resumable = ResumableModel(model, family.blocks(model))
    fitted, held_out = (
        _Stream(resumable, list(calibration_batches(model, part, None, BATCH_TOKENS)))
        for part in _split(text)
    )
    tuned, before, after = {}, 0.0, 0.0
    with frozen(model):
        for layer in range(max(merged) + 1):
            attention = family.attention(resumable.blocks[layer])
            examples = fitted.through(layer, attention)
            unseen = held_out.through(layer, attention)
            if layer not in merged:
                continue
            trained = TrainedLayer(family, attention, merged[layer])
            fit = _Fit(trained, attention, examples, unseen)
            size = sum(float(each.wanted[each.real].float().square().sum()) for each in unseen)
            before += fit._least / size / len(merged)
            for number in range(PASSES):
                fit.run_pass(number)
            after += fit._least / size / len(merged)
            tuned[layer] = fit.best().to(dtype=loaded.dtype)
    seconds = time.perf_counter() - began
    return {
        "before": Tried(merged, before, starts.seconds),
        "tuned": Tried({**tuned}, after, seconds),
    }


def _kl(
    loaded: LoadedModel,
    layers: Mapping[int, AttentionWeights],
    held_out: Mapping[str, Sequence[HeldOut]],
) -> dict[str, float]:
    family = family_of(loaded.model.config.model_type)
    blocks = family.blocks(loaded.model)
    attentions = {layer: family.attention(blocks[layer]) for layer in layers}
    originals = {layer: family.parameters(attention) for layer, attention in attentions.items()}
    try:
        for layer, weights in layers.items():
            family.write(attentions[layer], weights)
        return {task: measured(loaded, batches)[0] for task, batches in held_out.items()}
    finally:
        for layer, parameters in originals.items():
            family.install(attentions[layer], parameters)


def _table(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    lines = [
        "| try | stage | " + " | ".join(f"KL, {task}" for task in tasks) + " | error | seconds |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for row in rows:
        cells = [f"{row['kl'][task]:.4f}" for task in tasks]
        cells += [f"{row['error']:.4f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {row['try']} | {row['stage']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
