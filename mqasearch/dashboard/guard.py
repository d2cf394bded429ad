"""Protects the dashboards from the network: checks hosts, methods and accounts, adds headers.

optuna-dashboard has no login, and ``DELETE /api/studies/1`` works for anyone who reaches it.
"""

import ipaddress
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from mqasearch.dashboard.auth import Accounts

logger = logging.getLogger(__name__)

READING = ("GET", "HEAD")
WRITING = (*READING, "POST", "PUT", "DELETE")
HEALTH = "/mqasearch/health"

OUR_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    # plotly.js adds one empty style element and fills it by the object model: this is the hash of
    # the empty text. The style sheet of its maps, which we do not use, stays blocked.
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of everything that does not bring its own, as Optuna's pages do."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": OUR_POLICY,
    "Server": "mqasearch",
}
"""Added to every response that does not set them itself."""

_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    405: "Method Not Allowed",
    421: "Misdirected Request",
}


class Guard:
    """WSGI middleware: refuses what must not pass, and adds the security headers.

    In this order, it answers 421 to a ``Host`` that is not ours (DNS rebinding: a foreign page that
    resolves its own name to this machine), 405 to a method that is not allowed, 401 to a request
    without a valid account, and 403 to a change that another site's page asks for. Only the health
    check needs no account.

    Args:
        app: what is guarded.
        writable: whether POST, PUT and DELETE pass.
        accounts: accounts that may enter; None = anybody who reaches us may.
        allowed_hosts: names, besides the loopback ones, that ``Host`` may have.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        writable: bool = False,
        accounts: Accounts | None = None,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._methods = WRITING if writable else READING
        self.accounts = accounts
        self._hosts = {"localhost", "127.0.0.1", "::1"} | {host.lower() for host in allowed_hosts}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start = _with_headers(start_response)
        refusal = self._refusal(environ)
        if refusal is not None:
            status, message, headers = refusal
            body = refuse(start, status, message, headers)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else body
        # Without this header optuna-dashboard answers 500 to clients that do not compress.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        return self._app(environ, start)

    def _refusal(self, environ: WSGIEnvironment) -> tuple[int, str, dict[str, str]] | None:
        host, method = environ.get("HTTP_HOST", ""), environ["REQUEST_METHOD"]
        if not self._is_our_host(host):
            hint = "use the address it was started on, or start it with --allowed-host NAME"
            return 421, f"this host name is not served here; {hint}", {}
        if method not in self._methods:
            allow = {"Allow": ", ".join(self._methods)}
            hint = "; start it with --writable to allow changes" if method in WRITING else ""
            return 405, f"the dashboard is read-only, {method[:20]} is refused{hint}", allow
        if environ.get("PATH_INFO") == HEALTH:
            return None
        if self.accounts is not None:
            account = self.accounts.who(environ.get("HTTP_AUTHORIZATION", ""))
            if account is None:
                if environ.get("HTTP_AUTHORIZATION"):
                    logger.warning("wrong credentials from %s", environ.get("REMOTE_ADDR"))
                challenge = {"WWW-Authenticate": 'Basic realm="mqasearch", charset="UTF-8"'}
                return 401, "an account of the auth file is needed", challenge
        if method not in READING and not _is_same_site(environ, host):
            return 403, "changes are taken from the dashboard's own pages only", {}
        return None

    def _is_our_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # An address cannot be rebound, and a user with an account got it from us.
        return name in self._hosts or (self.accounts is not None and _is_address(name))


def refuse(
    start: StartResponse, status: int, message: str, headers: dict[str, str] | None = None
) -> Iterable[bytes]:
    """Answer with one line of JSON, ``{"error": message}``."""
    body = json.dumps({"error": message}).encode() + b"\n"
    all_headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    start(f"{status} {_REASONS.get(status, 'Error')}", list(all_headers.items()))
    return [body]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_site(environ: WSGIEnvironment, host: str) -> bool:
    """Whether a change was asked for by our own page or by a program, not by a foreign page."""
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        return False
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _with_headers(start_response: StartResponse) -> StartResponse:
    def start(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        present = {name.lower() for name, _ in headers}
        added = [(name, value) for name, value in HEADERS.items() if name.lower() not in present]
        return start_response(status, headers + added, exc_info)

    return start
