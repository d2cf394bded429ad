"""The served dashboards: Optuna's own with our figures in it, and pages for comparisons."""

from mqasearch.dashboard.auth import Accounts, load_accounts, make_line
from mqasearch.dashboard.plots import publish_figures
from mqasearch.dashboard.server import open_server, run_dashboard, serve
from mqasearch.dashboard.wsgi_app import dashboard_app

__all__ = [
    "Accounts",
    "dashboard_app",
    "load_accounts",
    "make_line",
    "open_server",
    "publish_figures",
    "run_dashboard",
    "serve",
]
