"""The real application over real HTTP, on a free port."""

import gzip
import http.client
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import optuna
import pytest
from dashboard.sample_studies import add_study, fill, make_trial, masks_of
from optuna.storages import BaseStorage, InMemoryStorage
from postgres import Postgres

from mqasearch.dashboard import dashboard_app, publish_figures
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.database import Patience
from mqasearch.record import open_storage

Serving = Callable[..., AbstractContextManager[str]]
PAGES = ["/mqasearch/", "/mqasearch/comparisons/demo", "/dashboard", "/dashboard/studies/1"]


class Reply:
    """Status, headers and body of a request; ``Host`` and the like may be given."""

    def __init__(self, url: str, path: str, method: str = "GET", **headers: str) -> None:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()
        connection.close()

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_served_with_security_headers(
    shared: BaseStorage, serving: Serving, path: str
) -> None:
    with serving(dashboard_app(shared)) as url:
        reply = Reply(url, path)
    assert reply.status == 200
    assert reply.headers["Content-Type"].lower().startswith("text/html")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Frame-Options"] == "DENY"
    assert reply.headers.get_all("Content-Security-Policy") == [
        reply.headers["Content-Security-Policy"]
    ]
    assert "Python" not in reply.headers["Server"]


def test_our_pages_run_no_inline_script_and_load_nothing_from_elsewhere(
    shared: BaseStorage, serving: Serving
) -> None:
    with serving(dashboard_app(shared)) as url:
        reply = Reply(url, "/mqasearch/comparisons/demo")
        addresses = re.findall(r'(?:src|href)="([^"]*)"', reply.text)
        loaded = re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]*)"', reply.text)
        assert all(address.startswith("/") for address in addresses)
        assert {Reply(url, address).status for address in loaded} == {200}
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|style=| on\w+=|<style", reply.text)


def test_the_index_lists_comparisons_and_the_page_its_selectors(
    shared: BaseStorage, serving: Serving
) -> None:
    with serving(dashboard_app(shared)) as url:
        index = Reply(url, "/mqasearch/").text
        page = Reply(url, "/mqasearch/comparisons/demo").text
    assert 'href="/mqasearch/comparisons/demo"' in index
    assert "someone else" not in index
    (comparison,) = read_comparisons(shared)
    for study in comparison.studies:
        assert study.best is not None
        assert f"/dashboard/studies/{study.study_id}" in page
        assert ", ".join(map(str, study.best.layers)) in page
        assert study.best.mask in page
    assert "1 running" in page


def test_an_empty_database_says_what_to_do(serving: Serving) -> None:
    with serving(dashboard_app(InMemoryStorage())) as url:
        assert "mqasearch create" in Reply(url, "/mqasearch/").text


def test_figures_and_trials_as_json(shared: BaseStorage, serving: Serving) -> None:
    with serving(dashboard_app(shared)) as url:
        figures = Reply(url, "/mqasearch/comparisons/demo/figures.json").json()
        trials = Reply(url, "/mqasearch/comparisons/demo/trials.json").json()
    for figure in figures:
        assert all(figure[word] for word in ("key", "title", "caption"))
        assert {"data", "layout"} <= set(figure["figure"])
    rows = [row for study in read_comparisons(shared)[0].studies for row in study.trials]
    assert [trial["mask"] for trial in trials] == [row.mask for row in rows]


def test_pages_follow_the_search(serving: Serving) -> None:
    storage = InMemoryStorage()
    fill(storage)
    with serving(dashboard_app(storage)) as url:
        path = "/mqasearch/comparisons/demo/figures.json"
        first = Reply(url, path)
        assert Reply(url, path, If_None_Match=first.headers["ETag"]).status == 304
        study = optuna.load_study(study_name="demo.alternating", storage=storage)
        study.add_trial(make_trial(masks_of([0, 2, 4])[0], 3, 99))
        second = Reply(url, path, If_None_Match=first.headers["ETag"])
    assert second.status == 200
    assert second.body != first.body


def test_names_are_text_not_html(serving: Serving) -> None:
    storage = InMemoryStorage()
    evil = "<img src=x onerror=alert(1)>"
    add_study(storage, evil, [make_trial(masks_of([7, 8, 9])[0], 3)], comparison='a"&<b>é')
    with serving(dashboard_app(storage)) as url:
        index = Reply(url, "/mqasearch/").text
        (link,) = re.findall(r'href="(/mqasearch/comparisons/[^"]*)"', index)
        page = Reply(url, link)
        assert Reply(url, link + "/figures.json").status == 200
    assert page.status == 200
    assert "<img" not in page.text + index
    assert "<b>" not in page.text + index
    assert "&lt;img" in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/mqasearch/nothing",
        "/mqasearch/comparisons/other",
        "/mqasearch/comparisons/demo/other.json",
        "/mqasearch/static/../pages.py",
        "/mqasearch/static/%2e%2e/pages.py",
    ],
)
def test_what_is_not_there(shared: BaseStorage, serving: Serving, path: str) -> None:
    with serving(dashboard_app(shared)) as url:
        assert Reply(url, path).status == 404


def test_plotly_is_the_one_of_the_package(shared: BaseStorage, serving: Serving) -> None:
    with serving(dashboard_app(shared)) as url:
        path = "/mqasearch/static/plotly.min.js"
        plain = Reply(url, path)
        packed = Reply(url, path, Accept_Encoding="br, gzip;q=0.5")
        refused = Reply(url, path, Accept_Encoding="gzip;q=0")
        again = Reply(url, path, If_None_Match=plain.headers["ETag"])
    assert plain.body == files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    assert plain.headers["Content-Encoding"] is None
    assert gzip.decompress(packed.body) == refused.body == plain.body
    assert (again.status, again.body) == (304, b"")


def test_head_has_no_body(shared: BaseStorage, serving: Serving) -> None:
    with serving(dashboard_app(shared)) as url:
        for path in PAGES:
            reply = Reply(url, path, "HEAD")
            assert (reply.status, reply.body) == (200, b"")
        assert Reply(url, "/mqasearch/", "HEAD", Host="evil.example").body == b""


def test_the_root_leads_to_the_comparisons(shared: BaseStorage, serving: Serving) -> None:
    with serving(dashboard_app(shared)) as url:
        for path in ("/", "/mqasearch"):
            reply = Reply(url, path)
            assert (reply.status, reply.headers["Location"]) == (302, "/mqasearch/")


def test_optunas_dashboard_shows_our_figures_live(memory: BaseStorage, serving: Serving) -> None:
    ours, foreign = (memory.get_study_id_from_name(name) for name in ("demo.tpe", "someone else's"))
    with serving(dashboard_app(memory)) as url:
        before = Reply(url, f"/api/studies/{ours}?after=0").json()
        study = optuna.load_study(study_name="demo.tpe", storage=memory)
        study.add_trial(make_trial(masks_of([0, 2, 4])[0], 3, 99))
        after = Reply(url, f"/api/studies/{ours}?after=9").json()
        theirs = Reply(url, f"/api/studies/{foreign}").json()
        assert Reply(url, "/api/studies/99").status == 404
    plots = [
        {plot["id"]: json.loads(plot["graph_object"]) for plot in detail["plotly_graph_objects"]}
        for detail in (before, after)
    ]
    shared = {"mqasearch-selectors", "mqasearch-sensitivity", "mqasearch-front"}
    assert set(plots[0]) == shared | {f"mqasearch-masks-{ours}"}
    assert plots[0] != plots[1]
    assert theirs["plotly_graph_objects"] == []
    assert len(before["trials"]) == 10  # what Optuna's dashboard answered is all still there
    assert [trial["number"] for trial in after["trials"]] == [9]


def test_optunas_static_files_come_to_clients_that_do_not_compress(
    shared: BaseStorage, serving: Serving
) -> None:
    with serving(dashboard_app(shared)) as url:
        page = Reply(url, "/dashboard").text
        scripts = re.findall(r'src="(/static/[^"]*)"', page)
        assert scripts
        assert {Reply(url, script).status for script in scripts} == {200}
        assert Reply(url, "/favicon.ico").status == 200


def test_published_figures_are_stored_once_and_replaced(memory: BaseStorage) -> None:
    def stored() -> list[dict[str, object]]:
        return [
            {
                key: value
                for key, value in study.system_attrs.items()
                if key.startswith("dashboard:plot_data:") and value
            }
            for study in memory.get_all_studies()
        ]

    assert publish_figures(memory, "no such comparison") == 0
    assert publish_figures(memory, "demo") == 3
    first = stored()
    assert [bool(attributes) for attributes in first] == [True, True, True, False]
    assert publish_figures(memory, "demo") == 3
    assert stored() == first
    study = optuna.load_study(study_name="demo.tpe", storage=memory)
    study.add_trial(make_trial(masks_of([0, 2, 4])[0], 3, 99))
    publish_figures(memory, "demo")
    assert stored() != first


def test_published_and_live_figures_appear_once(memory: BaseStorage, serving: Serving) -> None:
    publish_figures(memory, "demo")
    with serving(dashboard_app(memory)) as url:
        detail = Reply(url, f"/api/studies/{memory.get_study_id_from_name('demo.tpe')}").json()
    ids = [plot["id"] for plot in detail["plotly_graph_objects"]]
    assert len(ids) == len(set(ids)) == 4


def test_a_database_that_goes_away_is_said_so_without_its_password(
    postgres_server: Postgres, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-3f9c"
    url = postgres_server.new_database().replace("postgres@", f"postgres:{canary}@")
    open_storage(url).close()
    storage = open_storage(url, read_only=True, patience=Patience(0.2))
    with serving(dashboard_app(storage.optuna)) as address:
        assert Reply(address, "/mqasearch/").status == 200
        name = url.rpartition("/")[2]
        postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        replies = [Reply(address, path) for path in ("/mqasearch/", "/api/studies")]
    storage.close()
    assert [reply.status for reply in replies] == [500, 500]
    assert "could not be read" in replies[0].text
    assert not any(canary in reply.text for reply in replies)
    assert canary not in caplog.text
    assert "Traceback" not in replies[0].text


def test_a_role_that_may_only_read_is_enough(postgres_server: Postgres, serving: Serving) -> None:
    url = postgres_server.new_database()
    name = url.rpartition("/")[2]
    storage = open_storage(url)
    fill(storage.optuna)
    storage.close()
    postgres_server.execute(f"CREATE ROLE looker_{name} LOGIN")
    postgres_server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker_{name}", name)
    looker = open_storage(url.replace("postgres@", f"looker_{name}@"), read_only=True)
    with serving(dashboard_app(looker.optuna)) as address:
        statuses = [
            Reply(address, path).status
            for path in (*PAGES, "/mqasearch/comparisons/demo/figures.json", "/api/studies/3")
        ]
    looker.close()
    assert set(statuses) == {200}
