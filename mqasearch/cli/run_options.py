"""Options of ``run`` alone; most of them change the default study of a model."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="STUDY.yaml|MODEL",
        help="A study file; or smollm2-135m, a folder, a .gguf file or a hub id, for the "
        "default study of that model.",
    ),
]
OutputDir = Annotated[Path, typer.Option(help="Where masks.json goes, and a model's study.yaml.")]
MoreTrials = Annotated[
    str | None,
    typer.Option(
        metavar="+N|N",
        help="More trials: N more in this call, or N in all, for the selectors that end with "
        "a number of them (gp: of masks).",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="auto|N,…",
        help="MODEL: layers to convert, the share of the KV cache to keep (0.6), or a decoding "
        "time (12ms, with --latency); several separated by commas; auto, the default, for four "
        "sizes.",
    ),
]
Latency = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.json",
        help="MODEL: the times that `latency MODEL --kv-heads N,… -f json` measured.",
    ),
]
NumbersOfHeads = Annotated[
    str | None,
    typer.Option(
        "--kv-heads",
        metavar="N,…",
        help="MODEL: KV heads of a converted layer; with several, each layer gets one of them. [1]",
    ),
]
Tasks = Annotated[
    list[str] | None, typer.Option(help="MODEL: a benchmark; may be given again. [hellaswag]")
]
Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[TASK.]METRIC:POINTS",
        help="MODEL: what may be lost, in hundredths, as in acc_norm:1.0; may be given again.",
    ),
]
SearchDocuments = Annotated[
    str | None, typer.Option(metavar="N|all", help="MODEL: documents for the search.")
]
ConfirmationDocuments = Annotated[
    str | None, typer.Option(metavar="N|all", help="MODEL: held-out documents.")
]
Dtype = Annotated[str | None, typer.Option(help="MODEL: auto, float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="MODEL: of a hub id.")]
NameOfStudy = Annotated[
    str | None, typer.Option("--study-name", help="MODEL: of the study. [the model's name]")
]
