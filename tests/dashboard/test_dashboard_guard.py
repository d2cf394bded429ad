"""Who may do what: methods, hosts, accounts, addresses."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import bcrypt
import pytest
from dashboard.test_dashboard_http import Reply
from optuna.storages import BaseStorage, InMemoryStorage

from mqasearch.dashboard import dashboard_app, load_accounts, make_line, open_server, run_dashboard
from mqasearch.dashboard.__main__ import main
from mqasearch.dashboard.auth import Accounts
from mqasearch.errors import UserError

Serving = Callable[..., AbstractContextManager[str]]
SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Accounts:
    path = tmp_path_factory.mktemp("auth") / "auth.txt"
    path.write_text(f"# who may look\n\n{make_line('ada', SECRET)}\n")
    return load_accounts(path)


def _basic(name: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_every_method_but_get_and_head_is_refused(
    shared: BaseStorage, serving: Serving, method: str
) -> None:
    with serving(dashboard_app(shared)) as url:
        for path in ("/api/studies/1", "/api/studies", "/mqasearch/", "/nothing"):
            reply = Reply(url, path, method)
            assert reply.status == 405
            assert reply.headers["Allow"] == "GET, HEAD"
            assert reply.text.count("\n") == 1
            assert "read-only" in json.loads(reply.body)["error"]
    assert len(shared.get_all_studies()) == 4


def test_changes_when_writable_come_from_our_own_pages(
    memory: BaseStorage, serving: Serving
) -> None:
    with serving(dashboard_app(memory, writable=True)) as url:
        path = f"/api/studies/{memory.get_study_id_from_name('demo.alternating')}"
        foreign = Reply(url, path, "DELETE", Origin="http://evil.example")
        cross = Reply(url, path, "DELETE", Sec_Fetch_Site="cross-site")
        assert (foreign.status, cross.status, len(memory.get_all_studies())) == (403, 403, 4)
        assert Reply(url, path, "TRACE").status == 405
        ours = Reply(url, path, "DELETE", Origin=url.rstrip("/"), Sec_Fetch_Site="same-origin")
        assert (ours.status, len(memory.get_all_studies())) == (204, 3)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example", "[", "10.0.0.1"],
)
def test_another_host_name_is_refused(serving: Serving, host: str) -> None:
    with serving(dashboard_app(InMemoryStorage())) as url:
        assert Reply(url, "/mqasearch/", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:80", "my.name"])
def test_our_host_names_are_served(serving: Serving, host: str) -> None:
    with serving(dashboard_app(InMemoryStorage(), allowed_hosts=["My.Name"])) as url:
        assert Reply(url, "/mqasearch/", Host=host).status == 200


@pytest.mark.long
def test_an_account_opens_everything_and_nothing_else_does(
    accounts: Accounts, serving: Serving
) -> None:
    with serving(dashboard_app(InMemoryStorage(), auth=accounts)) as url:
        for path in ("/mqasearch/", "/dashboard", "/api/studies", "/mqasearch/static/style.css"):
            for header in (_basic("ada", SECRET), f"Bearer ada.{SECRET}"):
                assert Reply(url, path, Authorization=header).status == 200
            assert Reply(url, path).status == 401
        for header in (
            _basic("ada", "wrong secret!"),
            _basic("bob", SECRET),
            _basic("nobody", SECRET),
            f"Bearer {SECRET}",
            f"Digest ada.{SECRET}",
            "Basic ***",
            "Bearer",
            "Bearer .",
        ):
            reply = Reply(url, "/mqasearch/", Authorization=header)
            assert reply.status == 401
            assert reply.headers["WWW-Authenticate"].startswith("Basic realm=")
            assert SECRET not in reply.text
        assert Reply(url, "/mqasearch/health").text == "ok\n"


def test_with_accounts_an_address_is_a_host_name_too(accounts: Accounts, serving: Serving) -> None:
    """Containers and port forwards; an address cannot be rebound."""
    header = _basic("ada", SECRET)
    with serving(dashboard_app(InMemoryStorage(), auth=accounts)) as url:
        assert Reply(url, "/mqasearch/", Host="10.0.0.1:80", Authorization=header).status == 200
        assert Reply(url, "/mqasearch/", Host="evil.example", Authorization=header).status == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_an_account_is_required(host: str) -> None:
    with pytest.raises(UserError, match="--auth-file") as error:
        open_server(dashboard_app(InMemoryStorage()), host, 0)
    assert "\n" not in str(error.value)


def test_a_port_in_use_and_a_foreign_host_are_told_in_one_line() -> None:
    app = dashboard_app(InMemoryStorage())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use.*--port"):
            open_server(app, "127.0.0.1", port)
    with pytest.raises(UserError, match="no such address"):
        open_server(app, "no-such-host.invalid", 0)


def test_accounts_are_kept_as_salted_hashes() -> None:
    first, second = make_line("ada", SECRET), make_line("ada", SECRET)
    assert first != second
    assert SECRET not in first
    assert re.fullmatch(r"ada:\$2b\$12\$[./\w]{53}", first)


BY_APACHE = """ada:$2y$05$bJzSDLEVWPgHKiB5amxETe0NSzTbRskZSwWHjOvqVRwRUqf2zBjm6

bob:$2y$12$2x4ZLvhDCwROUbUhjBeFu.Lwt7ugthDKJvOAokWijhAxlN.0f3KQW

"""
"""What Apache 2.4.71 printed: `htpasswd -nbB ada "correct horse battery"`; for bob with `-C 12`."""


def test_what_apaches_htpasswd_made_is_read(tmp_path: Path) -> None:
    path = tmp_path / "auth.txt"
    path.write_text(BY_APACHE)
    for name in ("ada", "bob"):
        assert load_accounts(path).who(f"Bearer {name}.{SECRET}") == name
        assert load_accounts(path).who(f"Bearer {name}.{SECRET}!") is None


def test_an_unknown_name_costs_what_a_known_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.txt"
    path.write_text(BY_APACHE.splitlines()[0])
    accounts = load_accounts(path)
    costs: list[bytes] = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda _, hashed: costs.append(hashed[4:6]) is None)
    accounts.who(f"Bearer ada.{SECRET}?")
    accounts.who(f"Bearer eve.{SECRET}?")
    assert costs == [b"05", b"05"]


@pytest.mark.long
def test_only_the_whole_of_a_long_secret_opens(tmp_path: Path) -> None:
    """bcrypt reads 72 bytes: what follows must not be ignored."""
    longest = "x" * 72
    path = tmp_path / "auth.txt"
    path.write_text(make_line("ada", longest))
    assert load_accounts(path).who(f"Bearer ada.{longest}") == "ada"
    assert load_accounts(path).who(f"Bearer ada.{longest}y") is None


@pytest.mark.parametrize(
    ("name", "secret"),
    [("a:b", SECRET), ("", SECRET), ("a.b", SECRET), ("ada", "short"), ("ada", "x" * 73)],
    ids=["colon", "empty", "dot", "short", "long"],
)
def test_bad_names_and_short_secrets_are_refused(name: str, secret: str) -> None:
    with pytest.raises(UserError) as error:
        make_line(name, secret)
    assert secret not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "ada:secret",
        f"ada:$2b$12${'x' * 52}",
        f"ada:$2b$12${'!' * 53}",
        f"ada:$2b$12${'x' * 53}",  # its salt would be refused when somebody asks
        f"ada:$2b$31${'.' * 53}",
        f"ada:$2b$03${'.' * 53}",
        f"ada:$1$12${'.' * 53}",
        f"a b:$2b$12${'.' * 53}",
    ],
)
def test_a_malformed_auth_file_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "auth.txt"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(UserError, match=r"line 2.*python -m mqasearch\.dashboard"):
        load_accounts(path)


def test_an_auth_file_without_accounts_lets_nobody_start(tmp_path: Path) -> None:
    path = tmp_path / "auth.txt"
    with pytest.raises(UserError, match="cannot be read"):
        load_accounts(path)
    path.write_text("# nobody\n")
    with pytest.raises(UserError, match="no account"):
        run_dashboard("sqlite:///never-opened.db", auth_file=path)


@pytest.mark.long
@pytest.mark.parametrize("given", [SECRET, ""])
def test_the_command_prints_a_line_and_shows_only_a_secret_that_it_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["mqasearch.dashboard", "ada"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given + "\n"))
    assert main() == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    path = tmp_path / "auth.txt"
    path.write_text(shown.out)
    token = f"ada.{SECRET}" if given else shown.err.split()[-1]
    assert load_accounts(path).who(f"Bearer {token}") == "ada"


@pytest.mark.processes
def test_mqasearch_dashboard_serves_a_database_until_it_is_told_to_stop(sqlite_url: str) -> None:
    command = [sys.executable, "-m", "mqasearch", "dashboard", "--storage", sqlite_url, "--port=0"]
    command += ["--allowed-host=studies.example", "--allowed-host=other.example"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "http://" in line)
            url = re.findall(r"http://\S+", line)[0]
            assert Reply(url, "/mqasearch/comparisons/demo").status == 200
            for host, status in (("studies.example", 200), ("other.example", 200), ("evil", 421)):
                assert Reply(url, "/mqasearch/", Host=host).status == status
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
