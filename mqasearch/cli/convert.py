"""``convert``: from a mask JSON to a checkpoint that serves."""

from pathlib import Path
from typing import Annotated

import typer

from mqasearch.cli.options import Device


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(convert)


def convert(
    mask: Annotated[Path, typer.Argument(metavar="MASK.json", help="What export wrote.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder.")],
    format: Annotated[
        str,
        typer.Option(
            help="hf: really fewer KV heads, needs trust_remote_code; expanded: stock "
            "architecture, saves no memory."
        ),
    ] = "hf",
    selector: Annotated[
        str | None, typer.Option(help="Whose mask, of several; the best one otherwise.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the original model is now, if it moved.")
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")
    ] = "auto",
) -> None:
    """Write the converted model as a checkpoint folder, with tokenizer, mask and model card."""
    from mqasearch.models import load_model
    from mqasearch.search.scoring import calibrate_for_mask
    from mqasearch.serving.convert import check_request, convert_checkpoint
    from mqasearch.serving.mask_json import read_mask

    document = read_mask(mask, selector)
    loaded = load_model(model or document["model"]["id"], device=device, dtype=dtype)
    check_request(document, loaded, out_dir, format)
    statistics = calibrate_for_mask(loaded, document)
    checkpoint = convert_checkpoint(document, loaded, out_dir, format=format, statistics=statistics)
    print(f"{checkpoint.folder}: {checkpoint.format}, {checkpoint.weight_bytes / 1e6:.0f} MB")
