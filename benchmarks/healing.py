"""What a healing does to a mask's predictions: the figures of healing.md.

The figures are KL(original ‖ converted) of the next-token distribution on held-out documents, as in
merges.py, before and after distilling the converted layers; seconds per step; tokens per second;
and peak memory.

    python benchmarks/healing.py                            three masks, tuned, 480 steps each
    python benchmarks/healing.py --layers 25,26,27,28,29 --steps 100 --merge aligned mean
    python benchmarks/healing.py --dtype bfloat16 --device cuda -f json
"""

import argparse
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from merges import MERGES, batches_of, held_out_text, measured, name_of

from mqasearch.conversion import ConvertibleModel, calibrate
from mqasearch.families import family_of
from mqasearch.heal_recipe import Recipe, recipe_of
from mqasearch.healing import Step, heal
from mqasearch.mask import LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model
from mqasearch.tasks import TaskLibrary, calibration_tokens

SETS = ("6,7,25,28,29", ",".join(map(str, range(1, 30, 2))), ",".join(map(str, range(30))))


def main() -> None:
    options = _options()
    loaded = load_model(options.model, device=options.device, dtype=options.dtype)
    library = TaskLibrary()
    calibration, text = (
        calibration_tokens(loaded.tokenizer, [options.task], n_tokens, library=library)
        for n_tokens in (options.calibration_tokens, options.text_tokens)
    )
    held_out = batches_of(loaded, held_out_text(loaded, library, options.task, options.tokens, 0))
    facts = {
        "model": loaded.name,
        "device": _device(loaded),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "calibration_tokens": sum(map(len, calibration)),
        "text_tokens": sum(map(len, text)),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(facts), file=sys.stderr, flush=True)
    rows = []
    for label in options.merge:
        name, parameters = MERGES[label]
        merge = merge_of(name, **parameters)
        family = family_of(loaded.model.config.model_type)
        statistics = None
        if merge.reads_calibration:
            statistics = calibrate(
                loaded.model, family, calibration, merge, fingerprint=loaded.fingerprint
            )
        for layers in options.layers:
            mask = LayerMask.of([int(layer) for layer in layers.split(",")], loaded.shape.n_layers)
            plain = ConvertibleModel(loaded.model, family, merge, statistics)
            kv_heads = mask.kv_heads(loaded.shape)
            with plain.converted(kv_heads):
                before = measured(loaded, held_out)
            found = heal(
                plain,
                kv_heads,
                text,
                options.recipe,
                fingerprint=loaded.fingerprint if options.keep else None,
                watch=_watch(mask),
            )
            healed = plain.with_healed(found.layers)
            with healed.converted(kv_heads):
                after = measured(loaded, held_out)
            assert found.facts is not None
            rows.append(
                {
                    "layers": list(mask.layers),
                    "merge": label,
                    "kl": [before[0], after[0]],
                    "nll": [before[1], after[1]],
                    "peak_bytes": _peak_bytes(loaded),
                    **asdict(found.facts),
                }
            )
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    result = {**facts, "recipe": asdict(options.recipe), "rows": rows}
    print(json.dumps(result) if options.format == "json" else _table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--merge", nargs="+", choices=[*MERGES], default=["aligned+tune"])
    parser.add_argument("--layers", nargs="+", default=SETS, help="masks, as 25,27,29")
    parser.add_argument("--steps", default="auto")
    parser.add_argument("--rate", type=float, help="of learning, for 576 dimensions")
    parser.add_argument("--batch-tokens", type=int, help="of a step")
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--text-tokens", type=int, default=2**18, help="different ones to heal on")
    parser.add_argument("--tokens", type=int, default=3072, help="held out, to measure on")
    parser.add_argument(
        "--keep", action="store_true", help="results in the cache, to go on with if interrupted"
    )
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    options = parser.parse_args()
    recipe = recipe_of(options.steps)
    changes = {"learning_rate": options.rate, "batch_tokens": options.batch_tokens}
    given = {key: value for key, value in changes.items() if value is not None}
    options.recipe = Recipe(**(recipe.parameters | given))
    return options


def _watch(mask: LayerMask) -> Any:
    def show(step: Step) -> None:
        if step.step % 20 == 0:
            print(
                f"{name_of(mask.layers)}: step {step.step} of {step.n_steps}, KL {step.loss:.4f}, "
                f"held out {step.held_out:.4f}, {step.seconds:.2f} s a step",
                file=sys.stderr,
                flush=True,
            )

    return show


def _device(loaded: LoadedModel) -> str:
    is_cuda = loaded.device.type == "cuda"
    return torch.cuda.get_device_name(loaded.device) if is_cuda else loaded.device.type


def _peak_bytes(loaded: LoadedModel) -> int:
    """Peak memory so far, in bytes: that of tensors on a GPU, or of the whole process on a CPU."""
    if loaded.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(loaded.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(row: Mapping[str, Any]) -> str:
    per_step = row["seconds"] / max(row["steps"], 1)
    speed = row["n_tokens"] / max(row["seconds"], 1e-9)
    return (
        f"| {name_of(row['layers'])} | {row['merge']} | {row['kl'][0]:.4f} | {row['kl'][1]:.4f} | "
        f"{row['nll'][1] - row['nll'][0]:+.4f} | {row['steps']} | {row['best_step']} | "
        f"{row['n_tokens']:,} | {row['n_text_tokens']:,} | {per_step:.2f} | {speed:.0f} | "
        f"{row['peak_bytes'] / 1e9:.1f} |"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "| layers | merge | KL before | healed | Δ NLL | steps | kept | tokens | different | "
        "s a step | tokens a s | GB |"
    )
    return "\n".join([head, "|---" * 12 + "|", *map(_line, rows)])


if __name__ == "__main__":
    main()
