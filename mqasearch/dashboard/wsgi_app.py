"""The served application: Optuna's dashboard and our pages behind one guard."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard
from optuna.storages import BaseStorage

from mqasearch.dashboard.auth import Accounts
from mqasearch.dashboard.guard import Guard
from mqasearch.dashboard.plots import LivePlots
from mqasearch.dashboard.site import Site
from mqasearch.dashboard.templates import ROOT


def dashboard_app(
    storage: BaseStorage,
    *,
    writable: bool = False,
    auth: Accounts | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Guard:
    """Optuna's dashboard at ``/dashboard``, our pages at ``/mqasearch/``, as one WSGI application.

    Nothing is written unless ``writable``: every method but GET and HEAD is refused, and no GET
    writes, so that a database role with SELECT alone is enough.

    Args:
        storage: storage of the studies, which fetches each finished trial only once.
        writable: whether Optuna's dashboard may change and delete studies.
        auth: accounts that may enter; None = anybody who reaches the port may, for loopback only.
        allowed_hosts: names, besides the loopback ones, under which the dashboard is reached.
    """
    optunas = LivePlots(optuna_dashboard.wsgi(storage), storage)
    return Guard(
        _routed(optunas, Site(storage)),
        writable=writable,
        accounts=auth,
        allowed_hosts=allowed_hosts,
    )


def _routed(optunas: WSGIApplication, site: WSGIApplication) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in ("", "/", ROOT.rstrip("/")):
            start_response("302 Found", [("Location", ROOT), ("Content-Length", "0")])
            return []
        if path.startswith(ROOT):
            return site(environ, start_response)
        return optunas(environ, start_response)

    return application
