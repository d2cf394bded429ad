"""``convert``: from a mask JSON to a checkpoint that serves."""

from pathlib import Path
from typing import Annotated

import typer

from mqasearch.cli.bytes_bar import bytes_bar
from mqasearch.cli.options import Device, TrustRemoteCode
from mqasearch.errors import UserError

CheckpointFormat = Annotated[
    str,
    typer.Option(
        help="hf: transformers and vLLM, needs trust_remote_code; nemotron-nas: vLLM, MLX; "
        "gguf: llama.cpp; mlx; expanded: stock architecture, saves no memory. "
        "See `mqasearch formats`."
    ),
]
OutType = Annotated[
    str | None,
    typer.Option(help="Of the weights in gguf: f16, f32, bf16 or q8_0."),
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


Heal = Annotated[
    str | None,
    typer.Option(
        metavar="STEPS|auto",
        help="Train the converted layers' attention to predict as the original does, on "
        "calibration text: so many steps, or auto; 0 = not, though the mask says so.",
    ),
]
HealTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Of different calibration text to heal on; as many as steps see."),
]
Confirm = Annotated[
    bool,
    typer.Option(
        "--confirm", help="Score original, mask and healed mask on held-out documents first."
    ),
]
Confirmation = Annotated[
    str, typer.Option(metavar="N|all", help="Held-out documents per task for --confirm.")
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
    heal: Heal = None,
    heal_tokens: HealTokens = None,
    confirm: Confirm = False,
    confirmation: Confirmation = "400",
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
    n_docs = _documents(confirmation)

    from mqasearch.api import convert as write
    from mqasearch.cli.heal_progress import HealingBar, print_confirmation

    with HealingBar() as healing, bytes_bar("writing") as bar:
        checkpoint = write(
            mask,
            out_dir,
            model=model,
            format=format,
            outtype=outtype,
            dtype=dtype,
            device=device,
            selector=selector,
            refit=chosen,
            heal=heal,
            heal_tokens=heal_tokens,
            confirm=n_docs if confirm else None,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=healing.before(bar),
            watch_heal=healing.show,
        )
    if checkpoint.confirmation is not None:
        print_confirmation(checkpoint.confirmation)
    print(f"{checkpoint.folder}: {checkpoint.format}, {checkpoint.weight_bytes / 1e6:.0f} MB")


def _documents(given: str) -> int:
    """The value of ``--confirmation`` as a number; 0 for all documents."""
    if given == "all":
        return 0
    if given.isdecimal() and given.isascii() and int(given) > 1:
        return int(given)
    raise UserError(f"--confirmation {given!r}: give a number of documents, 2 or more, or all")


def _refit(refit: str | None, *, no_refit: bool) -> str | None:
    if no_refit and refit not in (None, "none"):
        raise UserError(f"--no-refit and --refit {refit} exclude each other: give one of them")
    return "none" if no_refit else refit
