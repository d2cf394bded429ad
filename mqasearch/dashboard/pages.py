"""The pages of a comparison, as HTML and JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from urllib.parse import quote

from mqasearch.dashboard.data import Comparison, Confirmed, StudyRows, TrialRow
from mqasearch.dashboard.figures import comparison_figures
from mqasearch.dashboard.markup import Html, document, element, table
from mqasearch.dashboard.style import format_bytes
from mqasearch.search.best import ranked

MAX_TABLE_ROWS = 200
ROOT = "/mqasearch/"
SCRIPTS = (f"{ROOT}static/plotly.min.js", f"{ROOT}static/figures.js")


def comparison_path(name: str) -> str:
    """Address of a comparison's page."""
    return f"{ROOT}comparisons/{quote(name, safe='')}"


def index_page(comparisons: Sequence[Comparison]) -> bytes:
    """The list of comparisons, newest first."""
    if not comparisons:
        body = element(
            "p",
            "No study of mqasearch in this database yet. Make one with ",
            element("code", "mqasearch create STUDY.yaml --storage URL"),
            ".",
        )
        return document("mqasearch", _header(), element("main", body))
    rows: list[tuple[str, ...]] = []
    for comparison in comparisons:
        study, best = comparison.best or (comparison.studies[0], None)
        rows.append(
            (
                element("a", comparison.name, href=comparison_path(comparison.name)),
                ", ".join(one.selector for one in comparison.studies),
                f"{study.n_converted} of {study.n_layers}",
                _progress(comparison.studies),
                _value(best),
                _delta(study, best),
                f"{_layers(best)} ({study.selector})" if best else "",
            )
        )
    head = ("comparison", "selectors", "layers", "scored", "best", "to original", "best mask")
    return document("mqasearch", _header(), element("main", table(head, rows)))


def comparison_page(comparison: Comparison) -> bytes:
    """Selectors side by side, the figures (drawn by the browser), and the masks."""
    first = comparison.studies[0]
    summary = f"{first.n_converted} of {first.n_layers} layers are converted; {first.metric}, "
    summary += "higher is better." if first.maximize else "lower is better."
    main = element(
        "main",
        element("h1", comparison.name),
        element("p", summary),
        element(
            "div", _selectors(comparison), _enqueued(comparison), _masks(comparison), id="tables"
        ),
        element("p", "", id="notice"),
        element(
            "div", id="figures", data_source=f"{comparison_path(comparison.name)}/figures.json"
        ),
        element("noscript", element("p", "The figures need JavaScript; the tables do not.")),
    )
    return document(f"{comparison.name}: mqasearch", _header(), main, scripts=SCRIPTS)


@lru_cache(maxsize=8)
def figures_json(comparison: Comparison, related: tuple[Comparison, ...]) -> bytes:
    """Every figure of a comparison: ``[{key, title, caption, figure: {data, layout}}]``.

    Built again only when a row has changed: browsers ask every few seconds.
    """
    return _as_json(
        [
            {
                "key": titled.key,
                "title": titled.title,
                "caption": titled.caption,
                "figure": json.loads(titled.figure.to_json()),
            }
            for titled in comparison_figures(comparison, related)
        ]
    )


def trials_json(comparison: Comparison) -> bytes:
    """Every trial of every selector, all fields of ``TrialRow``."""
    return _as_json([asdict(row) for study in comparison.studies for row in study.trials])


def _as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _header() -> Html:
    return element(
        "header",
        element("a", "mqasearch", href=ROOT, class_="name"),
        element("a", "Optuna's dashboard", href="/dashboard"),
    )


def _selectors(comparison: Comparison) -> Html:
    rows: list[tuple[str, ...]] = []
    for study in comparison.studies:
        best = study.best
        rows.append(
            (
                element("a", study.selector, href=f"/dashboard/studies/{study.study_id}"),
                _progress([study]),
                _value(best),
                _delta(study, best),
                _layers(best),
                format_bytes(best.kv_bytes) if best and best.kv_bytes is not None else "",
                _held_out(study),
                f"{sum(row.seconds or 0 for row in study.trials):,.0f}",
            )
        )
    head = (
        *("selector", "scored", "best", "to original", "layers", "KV per token"),
        *("held-out accuracy, to original [95 %]", "seconds"),
    )
    return table(head, rows)


def _enqueued(comparison: Comparison) -> Html:
    """The masks that the study file gives names to, whatever their size; nothing without any."""
    named = [
        (study, row)
        for study in comparison.studies
        for row in study.scored
        if row.label and row.n_converted
    ]
    if not named:
        return Html("")
    rows: list[tuple[str, ...]] = [
        (row.label, _layers(row), _value(row), _delta(study, row)) for study, row in named
    ]
    return table(("enqueued mask", "layers", "value", "to original"), rows)


def _masks(comparison: Comparison) -> Html:
    """The best masks at the budget, each once, with every selector that proposed it."""
    first = comparison.studies[0]
    scored = [row for study in comparison.studies for row in study.scored]
    found: dict[str, tuple[TrialRow, list[str]]] = {}
    for row in ranked(scored, maximize=first.maximize, n_converted=first.n_converted):
        found.setdefault(row.mask, (row, []))[1].append(f"{row.selector} {row.number}")
    rows: list[tuple[str, ...]] = [
        (
            str(place),
            element("code", row.mask.replace("0", "·").replace("1", "■"), title=row.mask),
            _layers(row),
            _value(row),
            _delta(first, row),
            ", ".join(who),
        )
        for place, (row, who) in enumerate([*found.values()][:MAX_TABLE_ROWS], start=1)
    ]
    left = f", the best {MAX_TABLE_ROWS} are listed" if len(found) > MAX_TABLE_ROWS else ""
    return element(
        "details",
        element("summary", f"Masks at the budget: {len(found)}{left}"),
        table(("", "mask, layer 0 first", "layers", "value", "to original", "proposed by"), rows),
        element(
            "p",
            element(
                "a", "All trials as JSON", href=f"{comparison_path(comparison.name)}/trials.json"
            ),
        ),
    )


def _progress(studies: Iterable[StudyRows]) -> str:
    """``12 of 30, 2 running``; without the plan's size where a selector ends by itself."""
    studies = list(studies)
    scored = sum(len(study.scored) for study in studies)
    running = sum(row.state == "running" for study in studies for row in study.trials)
    planned = [study.n_trials for study in studies]
    text = str(scored)
    if all(isinstance(number, int) for number in planned):
        text += f" of {sum(number or 0 for number in planned)}"
    return f"{text}, {running} running" if running else text


def _value(row: TrialRow | None) -> str:
    return "" if row is None or row.value is None else f"{row.value:.4f}"


def _delta(study: StudyRows, row: TrialRow | None) -> str:
    if row is None or row.delta is None:
        return ""
    worse = (row.delta < 0) if study.maximize else (row.delta > 0)
    return element("span", f"{row.delta:+.4f}", class_="worse" if worse else "better")


def _layers(row: TrialRow | None) -> str:
    return "" if row is None else ", ".join(map(str, row.layers)) or "none"


def _held_out(study: StudyRows) -> str:
    """Accuracy on documents that the search never saw, of the mask that is best now."""
    best = study.best
    rows = [row for row in study.confirmed if best is not None and row.mask == best.mask]
    return "; ".join(_interval(row) for row in _accuracies(rows))


def _accuracies(rows: Sequence[Confirmed]) -> list[Confirmed]:
    """One per task: ``acc_norm`` where the task has it, else ``acc``."""
    chosen: dict[str, Confirmed] = {}
    for metric in ("acc", "acc_norm"):
        chosen |= {row.task: row for row in rows if row.metric == metric}
    return list(chosen.values())


def _interval(row: Confirmed) -> str:
    interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
    return f"{row.task} {row.metric} {row.value:.3f}, {row.delta:+.3f} {interval}"
