"""``dashboard`` and ``db upgrade``: what serves, and what keeps the database current."""

from pathlib import Path
from typing import Annotated

import typer

from mqasearch.cli.launch_commands import serve
from mqasearch.cli.options import DEFAULT_STORAGE, Storage


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(dashboard)
    database = typer.Typer(help="The database's schema.", no_args_is_help=True)
    database.command("upgrade")(upgrade)
    database.command("serve")(serve)
    app.add_typer(database, name="db")


def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 8080,
    writable: Annotated[
        bool, typer.Option("--writable", help="Allow changes; read-only otherwise.")
    ] = False,
    auth_file: Annotated[
        Path | None, typer.Option(help="Hashed passwords; required beyond loopback.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that browsers know it by, behind a reverse proxy; repeatable."),
    ] = None,
) -> None:
    """Serve optuna-dashboard with mqasearch's figures."""
    from mqasearch.dashboard import run_dashboard

    run_dashboard(
        storage,
        host=host,
        port=port,
        writable=writable,
        auth_file=auth_file,
        allowed_hosts=allowed_host or (),
    )


def upgrade(storage: Storage = DEFAULT_STORAGE) -> None:
    """Bring the database to this version's schema."""
    from mqasearch.record import upgrade_storage

    upgrade_storage(storage)
    print("the database has this version's schema")
