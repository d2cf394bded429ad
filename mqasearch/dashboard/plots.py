"""Our figures inside Optuna's own dashboard.

Optuna's dashboard shows custom plots that are stored in a study's attributes, in pieces of 2 kB.
Each piece is written in a transaction of its own, and no transaction covers a whole plot. So the
figures are not stored while a search runs. ``LivePlots`` adds them to what the dashboard's server
answers; ``publish_figures`` stores them once, for users who open the database with
``optuna-dashboard`` itself.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna
import plotly.graph_objects as go
from optuna.storages import BaseStorage
from optuna_dashboard import save_plotly_graph_object

from mqasearch.dashboard.data import Comparison, StudyRows, siblings
from mqasearch.dashboard.figures import Titled, masks_figure, shared_figures
from mqasearch.dashboard.study_reading import read_comparisons

CARD_HEIGHT = 450
"""Height in pixels of a custom plot in Optuna's dashboard, which cuts off the rest."""

_STUDY = re.compile(r"/api/studies/(\d+)/?")


def publish_figures(storage: BaseStorage, comparison: str) -> int:
    """Store the figures of a comparison in each of its studies, replacing earlier ones.

    Use it with one writer, after the search has ended: it takes some twenty transactions per study,
    and a reader between two of them gets half a figure.

    Returns:
        The number of studies written; 0 if there is no such comparison.
    """
    comparisons = read_comparisons(storage)
    found = [one for one in comparisons if one.name == comparison]
    for one in found:
        shared = shared_figures(one, siblings(one, comparisons))
        for rows in one.studies:
            study = optuna.load_study(study_name=rows.name, storage=storage)
            for titled in (masks_figure(rows), *shared):
                save_plotly_graph_object(study, _entitled(titled), graph_object_id=titled.key)
    return sum(len(one.studies) for one in found)


class LivePlots:
    """WSGI middleware: adds our figures to the studies that Optuna's dashboard asks for.

    Args:
        app: optuna-dashboard's application.
        storage: storage that the figures' data is read from.
    """

    def __init__(self, app: WSGIApplication, storage: BaseStorage) -> None:
        self._app = app
        self._storage = storage

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match = _STUDY.fullmatch(environ.get("PATH_INFO", ""))
        if match is None or environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        status, headers, body = _collected(self._app, environ)
        if status.startswith("200"):
            body = self._with_plots(body, int(match[1]))
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(body)))])
        return [body]

    def _with_plots(self, body: bytes, study_id: int) -> bytes:
        """The study's JSON with the stored plots, ours in place of older versions of them."""
        answer = json.loads(body)
        plots = {plot["id"]: plot for plot in answer.get("plotly_graph_objects", ())}
        for key, figure in self._figures(study_id):
            plots[key] = {"id": key, "graph_object": figure}
        answer["plotly_graph_objects"] = list(plots.values())
        return json.dumps(answer).encode()

    def _figures(self, study_id: int) -> tuple[tuple[str, str], ...]:
        comparisons = read_comparisons(self._storage)
        for comparison in comparisons:
            for study in comparison.studies:
                if study.study_id == study_id:
                    return _figures(study, comparison, siblings(comparison, comparisons))
        return ()


@lru_cache(maxsize=16)
def _figures(
    study: StudyRows, comparison: Comparison, related: tuple[Comparison, ...]
) -> tuple[tuple[str, str], ...]:
    shown = (masks_figure(study), *shared_figures(comparison, related))
    return tuple((titled.key, _entitled(titled).to_json()) for titled in shown)


def _entitled(titled: Titled) -> go.Figure:
    """The figure as a card of Optuna's dashboard, with the card's height and its title inside."""
    figure = go.Figure(titled.figure)
    figure.update_layout(
        title={"text": titled.title, "x": 0.01, "y": 0.96, "xanchor": "left", "font": {"size": 16}},
        height=CARD_HEIGHT,
        margin={"t": 100},  # the title and two lines of legend
    )
    return figure


def _collected(
    app: WSGIApplication, environ: WSGIEnvironment
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status, headers and whole body of an application's answer."""
    answered: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        answered.append((status, headers))
        return written.append

    parts = app(environ, start)
    try:
        written.extend(parts)
    finally:
        if (close := getattr(parts, "close", None)) is not None:
            close()
    status, headers = answered[-1]
    return status, headers, b"".join(written)
