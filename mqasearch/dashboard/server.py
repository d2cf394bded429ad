"""Serve the dashboard: one thread a request, the standard library's WSGI server."""

import errno
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from mqasearch.dashboard.app import dashboard_app
from mqasearch.dashboard.auth import load_accounts
from mqasearch.dashboard.guard import Guard
from mqasearch.errors import UserError
from mqasearch.results import Patience
from mqasearch.search.storage import open_storage

logger = logging.getLogger(__name__)

IDLE_SECONDS = 30
"""After which a connection that sends nothing is closed."""

READ_SECONDS = 5.0
"""How long a page waits for a database that is away; workers wait much longer."""


class DashboardServer(ThreadingMixIn, WSGIServer):
    """A listening server; ``serve_forever`` answers, ``server_close`` ends it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error; anything else is logged in one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("request from %s failed: %r", client_address, error)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = str(self.server_address[0]), self.server_address[1]
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1" if self.address_family == socket.AF_INET else "::1"
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Requests are of interest only when something is wrong."""
        logger.debug(format, *args)


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
    try:
        server = DashboardServer(family, (str(address[0]), port))
    except OSError as error:
        raise UserError(_reason(error, host, port)) from None
    server.set_app(app)
    return server


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
        server.serve_forever()
    finally:
        server.server_close()


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
        storage: URL; its password is never shown.
        host: address or name to listen on.
        port: 0 picks a free one.
        writable: let Optuna's dashboard change and delete studies.
        auth_file: accounts; required beyond loopback.
        allowed_hosts: further names by which browsers may ask for it: those of a reverse proxy.

    Raises:
        UserError: the storage, the auth file or the address cannot be used.
    """
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
