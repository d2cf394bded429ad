"""``tasks``, ``families``, ``selectors``, ``merges``, ``formats``, ``schema``: what there is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from mqasearch.cli.options import Format, OutputFormat


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(tasks)
    app.command()(families)
    app.command()(selectors)
    app.command()(merges)
    app.command()(formats)
    app.command()(schema)


def tasks(
    everything: Annotated[
        bool, typer.Option("--all", help="lm-eval's own tasks too; they need a hub.")
    ] = False,
    format: OutputFormat = Format.TABLE,
) -> None:
    """List the tasks that can be scored."""
    from mqasearch.tasks import all_task_names, offline_task_names

    offline = set(offline_task_names())
    names = sorted(all_task_names() if everything else offline)
    _print(
        ("task", "data"),
        ((name, "offline" if name in offline else "hub") for name in names),
        format,
    )


def families(format: OutputFormat = Format.TABLE) -> None:
    """List the model types that can be converted."""
    from mqasearch.families import FAMILIES

    _print(("model type", "family"), sorted(_family_rows(FAMILIES)), format)


def selectors(format: OutputFormat = Format.TABLE) -> None:
    """List the selectors of layers; a study file without `selectors` takes the recommended."""
    from mqasearch.selectors import RECOMMENDED, SELECTORS

    _print(
        ("selector", "what it does", "parameters", "recommended"),
        (
            (
                name,
                SELECTORS.summary(name),
                _parameters(SELECTORS.parameters(name)),
                _recommended(RECOMMENDED.get(name)),
            )
            for name in SELECTORS
        ),
        format,
    )


def merges(format: OutputFormat = Format.TABLE) -> None:
    """List the ways to merge KV heads."""
    from mqasearch.merging import MERGES

    _print(
        ("merge", "what it does", "parameters"),
        ((name, MERGES.summary(name), _parameters(MERGES.parameters(name))) for name in MERGES),
        format,
    )


def formats(format: OutputFormat = Format.TABLE) -> None:
    """List the checkpoint formats that `convert` writes, and what loads them."""
    from mqasearch.formats import FORMATS

    _print(
        ("format", "what it is", "loaded by", "model types", "outtypes"),
        (
            (
                written.name,
                written.summary,
                ", ".join(_engines(written)),
                ", ".join(written.model_types),
                ", ".join(written.outtypes),
            )
            for written in FORMATS.values()
        ),
        format,
    )


def schema(
    name: Annotated[str, typer.Argument(help="study, mask, masks, reproduce or latency.")],
) -> None:
    """Print the JSON schema of a file: of the study file, say, for an editor that completes it."""
    from mqasearch.cli.printed_tables import print_json
    from mqasearch.errors import UnknownNameError

    if name == "study":
        from mqasearch.creation import study_schema

        print_json(study_schema())
        return
    from mqasearch.export import SCHEMAS
    from mqasearch.export import schema as published

    if name not in SCHEMAS:
        raise UnknownNameError("schema", name, ("study", *SCHEMAS))
    print_json(published(name))


def _engines(written: Any) -> dict[str, None]:
    """The engines' names, each once, in the order of the model card."""
    return dict.fromkeys(
        serving.engine
        for model_type in written.model_types
        for serving in written.serving(model_type)
    )


def _family_rows(known: Any) -> Iterable[tuple[str, str]]:
    for model_type in known:
        yield model_type, type(known[model_type]).__name__


def _parameters(known: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name}={default}" for name, (_, default) in known.items())


def _recommended(parameters: Mapping[str, Any] | None) -> str:
    """Whether a selector is recommended, and with which parameters if not the defaults."""
    if parameters is None:
        return ""
    given = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"yes, {given}" if given else "yes"


def _print(headers: Sequence[str], rows: Iterable[Sequence[str]], format: Format) -> None:
    from mqasearch.cli.printed_tables import print_rows

    print_rows(headers, rows, format)
