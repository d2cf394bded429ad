"""Does the order of masks survive tuning and healing? The rank correlations of healing.md.

The masks have 10 layers. Half of the masks are drawn from all layers, and half from the layers that
hurt least alone, so that good masks are compared with each other too. The held-out KL of each mask
is measured after `aligned`, after tuning, and after a healing of 100 steps.

    python benchmarks/healing_order.py              ten masks; two hours on two cores
    python benchmarks/healing_order.py --masks 6 --steps 20 -f json
    python benchmarks/healing_order.py --rows FILE  go on with the masks that FILE does not have
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from merges import HeldOut, batches_of, held_out_text, measured
from scipy.stats import spearmanr

from mqasearch.conversion import ConvertibleModel, calibrate
from mqasearch.families import family_of
from mqasearch.heal_recipe import Recipe
from mqasearch.healing import heal
from mqasearch.mask import LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model
from mqasearch.tasks import TaskLibrary, calibration_tokens

STAGES = ("aligned", "tuned", "healed")


def main() -> None:
    options = _options()
    loaded = load_model(options.model, device=options.device, dtype=options.dtype)
    library = TaskLibrary()
    text = calibration_tokens(loaded.tokenizer, [options.task], 32_768, library=library)
    held_out = batches_of(
        loaded, held_out_text(loaded, library, options.task, options.tokens, options.seed)
    )
    models = {stage: _merged(loaded, text, tune=stage != "aligned") for stage in STAGES[:2]}
    rows = _known(options.rows)
    for mask in _masks(models["tuned"], loaded, held_out, options):
        if any(row["layers"] == list(mask.layers) for row in rows):
            continue
        kv_heads = mask.kv_heads(loaded.shape)
        row: dict[str, Any] = {"layers": list(mask.layers)}
        for stage, convertible in models.items():
            row[stage] = _kl(convertible, kv_heads, loaded, held_out)
        recipe = Recipe(options.steps)
        plain = models["tuned"]
        found = heal(plain, kv_heads, text, recipe, fingerprint=loaded.fingerprint)
        row["healed"] = _kl(plain.with_healed(found.layers), kv_heads, loaded, held_out)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.rows is not None:
            with options.rows.open("a") as file:
                print(json.dumps(row), file=file)
    result = {"steps": options.steps, "rows": rows, "spearman": _correlations(rows)}
    print(json.dumps(result) if options.format == "json" else _table(result))


def _known(path: Path | None) -> list[dict[str, Any]]:
    """The masks of an earlier run with the same options, one JSON object in each line."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--layers", type=int, default=10, help="of a mask")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=3072, help="held out, to measure on")
    parser.add_argument("--rows", type=Path, help="masks that are done are added here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    return parser.parse_args()


def _merged(loaded: LoadedModel, text: Sequence[Sequence[int]], *, tune: bool) -> ConvertibleModel:
    family, merge = family_of(loaded.model.config.model_type), merge_of("aligned", tune=tune)
    statistics = calibrate(loaded.model, family, text, merge, fingerprint=loaded.fingerprint)
    return ConvertibleModel(loaded.model, family, merge, statistics)


def _kl(
    convertible: ConvertibleModel,
    kv_heads: Sequence[int],
    loaded: LoadedModel,
    held_out: Sequence[HeldOut],
) -> float:
    with convertible.converted(tuple(kv_heads)):
        return measured(loaded, held_out)[0]


def _masks(
    convertible: ConvertibleModel,
    loaded: LoadedModel,
    held_out: Sequence[HeldOut],
    options: argparse.Namespace,
) -> list[LayerMask]:
    """Random masks of all layers, and random masks of the better half of the layers, in turn."""
    n_layers = loaded.shape.n_layers
    alone = [
        _kl(convertible, LayerMask.of([layer], n_layers).kv_heads(loaded.shape), loaded, held_out)
        for layer in range(n_layers)
    ]
    better = np.argsort(alone)[: max(options.layers + 2, n_layers // 2)]
    rng = np.random.default_rng(options.seed)
    masks = []
    for number in range(options.masks):
        among = better if number % 2 else np.arange(n_layers)
        chosen = rng.choice(among, size=options.layers, replace=False)
        masks.append(LayerMask.of(sorted(map(int, chosen)), n_layers))
    return masks


def _correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Spearman's correlation between the KL at two stages, for each pair of stages."""
    found = {}
    for first, second in (("aligned", "tuned"), ("aligned", "healed"), ("tuned", "healed")):
        pairs = [(row[first], row[second]) for row in rows]
        found[f"{first}, {second}"] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found


def _table(result: Mapping[str, Any]) -> str:
    lines = ["| layers | aligned | tuned | healed |", "|---|---|---|---|"]
    for row in sorted(result["rows"], key=lambda row: row["aligned"]):
        cells = " | ".join(f"{row[stage]:.4f}" for stage in STAGES)
        lines.append(f"| {', '.join(map(str, row['layers']))} | {cells} |")
    said = "; ".join(f"{pair} {value:.2f}" for pair, value in result["spearman"].items())
    return "\n".join([*lines, "", f"Spearman's rank correlation: {said}"])


if __name__ == "__main__":
    main()
