"""``convert``: from a mask JSON to a checkpoint that serves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mqasearch.cli.options import Device, TrustRemoteCode
from mqasearch.errors import ModelError, UnknownNameError, UserError

CheckpointFormat = Annotated[
    str,
    typer.Option(
        help="hf: really fewer KV heads, needs trust_remote_code; expanded: stock "
        "architecture, saves no memory."
    ),
]
OutType = Annotated[
    str | None,
    typer.Option(help="Of the weights, for formats that have a choice."),
]
Refit = Annotated[
    str | None,
    typer.Option(
        help="parallel, as masks are scored; sequential, each layer behind the converted ones "
        "before it; none. The mask's own otherwise."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Of the weights: auto, float32, bfloat16 or float16; that in which the mask was "
        "scored otherwise."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(convert)


def convert(
    mask: Annotated[Path, typer.Argument(metavar="MASK.json", help="What export wrote.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new folder.")],
    format: CheckpointFormat = "hf",
    outtype: OutType = None,
    selector: Annotated[
        str | None, typer.Option(help="Whose mask, of several; the best one otherwise.")
    ] = None,
    refit: Refit = None,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Same as --refit none.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the original model is now, if it moved.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of a hub id; the mask's own otherwise.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Write the converted model as a checkpoint folder, with tokenizer, mask and model card."""
    chosen = _refit(refit, no_refit=no_refit)

    from mqasearch.search.scoring import calibrate_for_mask
    from mqasearch.serving.convert import check_request, convert_checkpoint, with_refit
    from mqasearch.serving.folder import check_output
    from mqasearch.serving.formats import Options
    from mqasearch.serving.mask_json import read_mask

    document = read_mask(mask, selector)
    if chosen is not None:
        document = with_refit(document, chosen)
    if revision is not None and model is None:
        document["model"]["revision"] = revision  # so that the written mask finds it again
    check_output(out_dir, 0)
    loaded = _load(
        document["model"],
        model,
        revision,
        device,
        dtype or document.get("dtype", "auto"),
        trust_remote_code=trust_remote_code,
    )
    options = Options(outtype=outtype)
    check_request(document, loaded, out_dir, format, options)
    statistics = calibrate_for_mask(loaded, document)
    checkpoint = convert_checkpoint(
        document, loaded, out_dir, format=format, options=options, statistics=statistics
    )
    print(f"{checkpoint.folder}: {checkpoint.format}, {checkpoint.weight_bytes / 1e6:.0f} MB")


def _refit(refit: str | None, *, no_refit: bool) -> str | None:
    if no_refit and refit not in (None, "none"):
        raise UserError(f"--no-refit and --refit {refit} exclude each other: give one of them")
    return "none" if no_refit else refit


def _load(
    of_mask: Mapping[str, Any],
    moved_to: str | None,
    revision: str | None,
    device: str,
    dtype: str,
    *,
    trust_remote_code: bool,
) -> Any:
    """The mask's model, from where it is now."""
    from mqasearch.models import device_of, dtype_of, is_here, load_model

    name = moved_to or of_mask["id"]
    if moved_to is None:
        revision = revision or of_mask.get("revision")
    dtype_of(dtype, device_of(device))  # not to be taken for a model that is not there
    try:
        return load_model(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (ModelError, UnknownNameError) as error:
        if moved_to is not None or is_here(name):
            raise
        raise ModelError(f"{error}; if the mask's model has moved, say where: --model") from error
