"""Our own pages as a WSGI application, mounted under ``/mqasearch/``."""

import gzip
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from wsgiref.types import StartResponse, WSGIEnvironment

from optuna.storages import BaseStorage

from mqasearch.dashboard.data import Comparison, siblings
from mqasearch.dashboard.guard import HEALTH
from mqasearch.dashboard.pages import comparison_page, figures_json, index_page, trials_json
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.dashboard.templates import ROOT, page
from mqasearch.dashboard.verdict_html import read_verdict

logger = logging.getLogger(__name__)

_REASONS = {200: "OK", 304: "Not Modified", 404: "Not Found", 500: "Internal Server Error"}
_STATIC = {
    "plotly.min.js": ("plotly", "package_data/plotly.min.js", "text/javascript"),
    "figures.js": ("mqasearch.dashboard", "static/figures.js", "text/javascript"),
    "style.css": ("mqasearch.dashboard", "static/style.css", "text/css"),
}
"""Name → package that holds the file, path inside it, type. plotly.js comes from the plotly
package, so the pages work without a network."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page function returns."""

    body: bytes
    content_type: str = "text/html"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = field(default=())


class Site:
    """Index, comparisons, figures and static files; reads the storage at every request.

    Args:
        storage: a storage that fetches each finished trial only once.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        try:
            answer = self.answer(path)
        # any failure of the storage ends here: the page says so, the log says why
        except Exception as error:
            logger.error("%s failed: %s: %s", path, type(error).__name__, _first_line(error))
            message = "The database could not be read; the reason is in the dashboard's log."
            answer = Answer(_message(message), status=500)
        return _send(answer, environ, start_response)

    def answer(self, path: str) -> Answer:
        """The page at a path below ``/mqasearch/``."""
        if path == HEALTH:
            return Answer(b"ok\n", "text/plain")
        kind, _, rest = path.removeprefix(ROOT).partition("/")
        if not kind:
            return Answer(index_page(read_comparisons(self._storage)))
        if kind == "static" and rest in _STATIC:
            return _static(rest)
        if kind == "comparisons":
            name, _, part = rest.partition("/")
            return self._comparison(name, part)
        return _missing("There is no such page.")

    def _comparison(self, name: str, part: str) -> Answer:
        comparisons = read_comparisons(self._storage)
        comparison = next((one for one in comparisons if one.name == name), None)
        parts: dict[str, Callable[[Comparison], Answer]] = {
            "": lambda one: Answer(comparison_page(one, read_verdict(self._storage, one.name))),
            "figures.json": lambda one: Answer(
                figures_json(one, siblings(one, comparisons)), "application/json"
            ),
            "trials.json": lambda one: Answer(trials_json(one), "application/json"),
        }
        if comparison is None:
            return _missing(f"There is no comparison {name!r} in this database.")
        if part not in parts:
            return _missing("There is no such page.")
        return parts[part](comparison)


def _missing(message: str) -> Answer:
    return Answer(_message(message, leads_home=True), status=404)


def _message(message: str, *, leads_home: bool = False) -> bytes:
    return page("message.html", "mqasearch", message=message, leads_home=leads_home)


def _static(name: str) -> Answer:
    package, path, content_type = _STATIC[name]
    return Answer(_file(package, path), content_type)


@lru_cache(maxsize=len(_STATIC))
def _file(package: str, path: str) -> bytes:
    return files(package).joinpath(path).read_bytes()


def _send(
    answer: Answer, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Send an answer, with entity tags, compression and HEAD."""
    tag = f'W/"{hashlib.sha256(answer.body).hexdigest()[:32]}"'
    headers = [("ETag", tag), ("Vary", "Accept-Encoding"), *answer.headers]
    if answer.status == 200 and environ.get("HTTP_IF_NONE_MATCH") == tag:
        start_response(f"304 {_REASONS[304]}", headers)
        return []
    body, content_type = answer.body, f"{answer.content_type}; charset=utf-8"
    if len(body) > 1000 and _accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
        body = _compressed(body)
        headers.append(("Content-Encoding", "gzip"))
    headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    start_response(f"{answer.status} {_REASONS[answer.status]}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


@lru_cache(maxsize=16)
def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=6, mtime=0)


def _accepts_gzip(header: str) -> bool:
    offers = (offer.replace(" ", "").lower() for offer in header.split(","))
    return any(offer.startswith("gzip") and not offer.endswith(";q=0") for offer in offers)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
