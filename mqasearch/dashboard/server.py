"""Serve the dashboard with waitress."""

import errno
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import waitress
from waitress.wasyncore import close_all, loop

from mqasearch.dashboard.auth import load_accounts
from mqasearch.dashboard.guard import Guard
from mqasearch.dashboard.wsgi_app import dashboard_app
from mqasearch.database import Patience
from mqasearch.errors import UserError
from mqasearch.record import open_storage

SETTINGS: dict[str, Any] = {
    "threads": 8,
    "channel_timeout": 30,  # seconds after which a connection that sends nothing is closed
    "max_request_body_size": 2**20,
    "ident": None,
}

MAINTENANCE_SECONDS = 1.0
"""Seconds between two looks for connections that have been silent for too long."""

READ_SECONDS = 5.0
"""Seconds that a page waits for a database that is away; workers wait much longer."""


class DashboardServer:
    """Listens as soon as it is made, and answers in :meth:`run`.

    Args:
        app: what is served.
        listening: a socket that is bound to an address.
    """

    def __init__(self, app: Guard, listening: socket.socket) -> None:
        self._address = listening.getsockname()
        self._family = listening.family
        self._channels: dict[int, Any] = {}
        self._server = waitress.create_server(
            app, sockets=[listening], map=self._channels, **SETTINGS
        )
        self._is_stopped = threading.Event()
        self._closing = threading.Lock()

    def run(self) -> None:
        """Answer requests until :meth:`stop`, or until the process is interrupted."""
        try:
            while not self._is_stopped.is_set():
                loop(timeout=MAINTENANCE_SECONDS, use_poll=True, map=self._channels, count=1)
        finally:
            self._server.task_dispatcher.shutdown()
            self.close()

    def stop(self) -> None:
        """End :meth:`run`, from another thread."""
        with self._closing:  # the trigger of the other thread must be open
            if self._channels:
                self._is_stopped.set()
                self._server.pull_trigger()

    def close(self) -> None:
        """Close all connections and stop listening. A second call does nothing."""
        with self._closing:
            close_all(self._channels)

    @property
    def url(self) -> str:
        """The URL by which a browser on this machine finds it."""
        host, port = str(self._address[0]), self._address[1]
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1" if self._family == socket.AF_INET else "::1"
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def open_server(app: Guard, host: str = "127.0.0.1", port: int = 8080) -> DashboardServer:
    """Start to listen.

    Args:
        app: what ``dashboard_app`` made.
        host: address or name to listen on.
        port: 0 picks a free one.

    Raises:
        UserError: the address can be reached from other machines and the app has no accounts; the
            port is in use or not allowed; the host is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: no such address; 127.0.0.1 is this machine") from None
    family, _, _, _, address = found[0]
    if app.accounts is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise UserError(
            f"--host {host} can be reached from other machines: give --auth-file FILE (make a line "
            "of it with: python -m mqasearch.dashboard NAME) or listen on 127.0.0.1"
        )
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(address[0]), port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(_reason(error, host, port)) from None
    return DashboardServer(app, listening)


def serve(
    app: Guard,
    host: str = "127.0.0.1",
    port: int = 8080,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        app: what ``dashboard_app`` made.
        host: address or name to listen on.
        port: 0 picks a free one.
        announce: called with the URL once requests are answered.

    Raises:
        UserError: as ``open_server``.
    """
    server = open_server(app, host, port)
    try:
        announce(server.url)
        server.run()
    finally:
        server.close()


def run_dashboard(
    storage: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    auth_file: Path | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """``mqasearch dashboard``: open the storage, say where the pages are, and serve them.

    Args:
        storage: the database's URL; its password is never shown.
        host: address or name to listen on.
        port: 0 picks a free one.
        writable: whether Optuna's dashboard may change and delete studies.
        auth_file: file of the accounts; required beyond loopback.
        allowed_hosts: further names by which browsers may ask for it: those of a reverse proxy.

    Raises:
        UserError: the storage, the auth file or the address cannot be used.
    """
    # Waitress warns of a request that waits, and a page asks for ten files at once.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    accounts = None if auth_file is None else load_accounts(auth_file)
    patience = Patience(READ_SECONDS)
    opened = open_storage(storage, create=False, read_only=not writable, patience=patience)
    app = dashboard_app(
        opened.optuna, writable=writable, auth=accounts, allowed_hosts=(host, *allowed_hosts)
    )
    changes = "changes allowed" if writable else "read-only"

    def announce(url: str) -> None:
        print(f"dashboard of {opened.url_hidden} ({changes}): {url}", file=sys.stderr)

    serve(app, host, port, announce)


def _reason(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: choose another with --port (0 picks one)"
        case errno.EACCES:
            return f"port {port} on {host} is not allowed for this user: choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"--host {host} is not an address of this machine; 127.0.0.1 is"
        case _:
            return f"cannot listen on {host}, port {port}: {error.strerror or error}"
