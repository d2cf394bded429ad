"""Does what layers save in decoding add up? Predicted and measured times of masks between the ends.

The prediction is that of a budget in milliseconds: from the time of the converted code with the
model's own KV heads, and from that of all layers at fewer, in the same run (levels.md).

    python benchmarks/additive.py
    python benchmarks/additive.py --model planted --heads 3 --context 4096 --batch-size 2
"""

import argparse
from statistics import median

from mqasearch.budget import DecodeTimes
from mqasearch.latency import Workload, measure, numbers_of_heads
from mqasearch.mask import KVHeads
from mqasearch.models import load_model
from mqasearch.statistics import median_interval


def main() -> None:
    options = _options()
    loaded = load_model(options.model, device=options.device, dtype=options.dtype)
    shape = loaded.shape
    ends = numbers_of_heads(shape, [options.heads], own_code=True)
    original, unconverted, reduced = ends
    between: dict[str, KVHeads] = {}
    for part in range(1, options.parts):
        count = round(shape.n_layers * part / options.parts)
        chosen = {(2 * place + 1) * shape.n_layers // (2 * count) for place in range(count)}
        between[f"{count} of {shape.n_layers} layers"] = tuple(
            options.heads if layer in chosen else shape.n_kv_heads
            for layer in range(shape.n_layers)
        )
    workload = Workload(
        (options.context,), (options.batch_size,), n_tokens=32, repetitions=options.repetitions
    )
    report = measure(loaded, ends | between, workload)
    first = report.rows[0].decode.median
    samples = {
        row.variant: [1e3 * first / each for each in row.decode_speedup.samples]
        for row in report.rows
    }
    ms = {
        shape.n_kv_heads: median(samples[unconverted]),
        options.heads: median(samples[reduced]),
    }
    times = DecodeTimes(options.context, options.batch_size, ms)
    print("| variant | predicted, ms | measured, ms |\n|---|---|---|")
    for name in (original, unconverted, *between, reduced):
        predicted = "" if name == original else f"{times.predicted_ms((ends | between)[name]):.1f}"
        low, high = median_interval(samples[name]) or (min(samples[name]), max(samples[name]))
        print(f"| {name} | {predicted} | {median(samples[name]):.1f} [{low:.1f}, {high:.1f}] |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--heads", type=int, default=1, help="KV heads of a converted layer")
    parser.add_argument("--parts", type=int, default=4, help="steps from no layer to all layers")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
