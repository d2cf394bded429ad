"""The model card of a converted checkpoint."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mqasearch.formats import Format
from mqasearch.mask import ModelShape
from mqasearch.models import is_hub_id
from mqasearch.statistics import Estimate

_RANKS = (1, 2, 3, 4, 8)
"""Numbers of tensor-parallel ranks in the card's table."""


def model_card(
    document: Mapping[str, Any], shape: ModelShape, written: Format, model_type: str
) -> str:
    """README.md: what was done to which model, what it costs, and how to load the result.

    Args:
        document: the mask JSON.
        shape: the original model's shape.
        written: the format of the checkpoint.
        model_type: the original model's type.
    """
    source = document["model"]["id"]
    on_hub = is_hub_id(source)
    name = source if on_hub else PurePath(source).name  # no path of this machine in a card
    base = f"base_model: {source}\n" if on_hub else ""
    library = f"library_name: {written.library}\n" if written.library else ""
    lines = [
        f"---\n{library}{base}tags:\n- mqasearch\n- multi-query-attention\n---",
        f"# {name} with fewer KV heads",
        f"{len(document['mqa_layers'])} of {shape.n_layers} attention layers of {name} have fewer "
        f"KV heads than the original's {shape.n_kv_heads}. "
        f"They were converted {_how(document)} by mqasearch; "
        "`mask.json` says how the layers were chosen and what was measured.",
        _healing(document),
        _table(document["kv_heads"], shape),
        _saved(document, shape, written),
        _scores(document),
        _how_to_serve(written, model_type),
        written.refused_by,
        "The weights are derived from the original's, whose license applies to them.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _how(document: Mapping[str, Any]) -> str:
    if document.get("healed", {}).get("best_step"):
        return "and healed"
    return "without training"


def _healing(document: Mapping[str, Any]) -> str:
    """A paragraph on the healing: what it trained, on which text, and its result."""
    healed = document.get("healed")
    if not healed or "steps" not in healed:
        return ""
    tasks = ", ".join(task["name"] for task in healed["text"]["tasks"])
    before, after = healed["kl"]["before"], healed["kl"]["after"]
    lost = "" if before is None else f" from {before:.3f} to {after:.3f}"
    return (
        f"Healed: the attention weights of the converted layers were trained for "
        f"{healed['steps']} steps ({healed['n_tokens']:,} tokens, {healed['n_text_tokens']:,} of "
        f"them different, of the calibration documents of {tasks}) to predict as the original "
        "does. "
        f"The KL divergence from the original on calibration text that was held out fell{lost}; "
        f"the weights of step {healed['best_step']} were kept. Nothing else was changed."
    )


def _how_to_serve(written: Format, model_type: str) -> str:
    return "\n\n".join(
        f"## {serving.engine}\n\n```{serving.language}\n{serving.code}\n```"
        for serving in written.serving(model_type)
    )


def _saved(document: Mapping[str, Any], shape: ModelShape, written: Format) -> str:
    """Bytes of cache per token: in all, and on each tensor-parallel rank."""
    before, after = (document["kv_bytes_per_token"][key] for key in ("original", "converted"))
    dtype = f" in {document['dtype']}" if "dtype" in document else ""
    whole = (
        f"KV cache per token: {after:,} bytes{dtype}, {after / before:.0%} of the original's "
        f"{before:,}."
    )
    if not written.saves_memory:
        return (
            f"{whole} This checkpoint repeats the merged heads in the original's shapes, so it "
            "computes the same but saves no memory."
        )
    kv_heads = tuple(document["kv_heads"])
    ranks = [n for n in _RANKS if shape.n_heads % n == 0 and _divide(n, shape.n_kv_heads)]
    if len(ranks) == 1:
        return whole
    head = (
        "| tensor-parallel ranks | bytes a token on each rank | of the original's |\n|---|---|---|"
    )
    rows = []
    for n_ranks in ranks:
        original, converted = (
            shape.kv_bytes_per_rank(heads, n_ranks) for heads in (shape.original, kv_heads)
        )
        rows.append(f"| {n_ranks} | {converted:,} | {converted / original:.0%} |")
    why = (
        "A KV head that several ranks need is on each of them, so with more ranks the saving "
        "shrinks:"
    )
    return "\n\n".join([whole, why, "\n".join([head, *rows])])


def _divide(one: int, other: int) -> bool:
    """Whether one of the two numbers divides the other, as tensor-parallel engines require."""
    return max(one, other) % min(one, other) == 0


def _table(kv_heads: list[int], shape: ModelShape) -> str:
    rows = []
    for heads in sorted({*kv_heads}):
        layers = [str(layer) for layer, n in enumerate(kv_heads) if n == heads]
        note = " (as in the original)" if heads == shape.n_kv_heads else ""
        rows.append(f"| {heads}{note} | {', '.join(layers)} |")
    return "\n".join(["| KV heads | layers |", "|---|---|", *rows])


def _scores(document: Mapping[str, Any]) -> str:
    baseline, searched = (document.get(key) or {} for key in ("baseline", "search_scores"))
    if "healed" in document:
        searched = {}  # these are scores of the mask before it was healed
    rows = []
    for task, metrics in (document.get("scores") or {}).items():
        for metric, row in metrics.items():
            original = baseline.get(task, {}).get(metric)
            rows.append(_score(task, metric, row, original))
            earlier = searched.get(task, {}).get(metric)
            if earlier is not None and row["split"] != earlier["split"]:
                rows.append(_score(task, metric, earlier, None))
    if not rows:
        return ""
    head = ["| task | metric | converted | original | documents |", "|---|---|---|---|---|"]
    measured = f"Measured in {document['dtype']}:\n\n" if "dtype" in document else ""
    errors = "± is one standard error."
    if any("| search" in row for row in rows):
        errors += " The search documents chose the mask, so chance favours it there."
    return measured + "\n".join([*head, *rows]) + f"\n\n{errors}"


def _score(
    task: str, metric: str, row: Mapping[str, Any], original: Mapping[str, Any] | None
) -> str:
    documents = f"{row['split']}, {row['n_docs']}" if "n_docs" in row else row["split"]
    before = "" if original is None else _estimate(original)
    return f"| {task} | {metric} | {_estimate(row)} | {before} | {documents} |"


def _estimate(row: Mapping[str, Any]) -> str:
    return str(Estimate(row["value"], row.get("stderr")))
