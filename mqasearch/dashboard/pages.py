"""The pages of a comparison, as HTML and JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mqasearch.dashboard.confirmed import Confirmed
from mqasearch.dashboard.data import Comparison, StudyRows, TrialRow
from mqasearch.dashboard.figures import comparison_figures
from mqasearch.dashboard.style import format_bytes
from mqasearch.dashboard.templates import ROOT, page
from mqasearch.dashboard.verdict_html import verdict_table
from mqasearch.statistics import Estimate
from mqasearch.study import HeldOut, Verdict, ranked

MAX_TABLE_ROWS = 200
SCRIPTS = (f"{ROOT}static/plotly.min.js", f"{ROOT}static/figures.js")


def comparison_path(name: str) -> str:
    """Address of a comparison's page."""
    return f"{ROOT}comparisons/{quote(name, safe='')}"


def index_page(comparisons: Sequence[Comparison]) -> bytes:
    """The list of comparisons, newest first."""
    rows: list[tuple[str, ...]] = []
    for comparison in comparisons:
        study, best = comparison.best or (comparison.studies[0], None)
        rows.append(
            (
                _link(comparison_path(comparison.name), comparison.name),
                ", ".join(one.selector for one in comparison.studies),
                study.budget,
                _progress(comparison.studies),
                _value(best),
                _delta(study, best),
                _held_out(study.held_out) if best else "",
                f"{_layers(best)} ({study.selector})" if best else "",
            )
        )
    head = (
        *("comparison", "selectors", "budget", "scored"),
        *("best, search", "to original", "held out", "best mask"),
    )
    return page("index.html", "mqasearch", head=head, rows=rows)


def comparison_page(comparison: Comparison, verdict: Verdict | None = None) -> bytes:
    """The verdict, selectors side by side, the figures (drawn by the browser), and the masks."""
    first = comparison.studies[0]
    summary = f"{_budget(first)}; {first.metric}, "
    summary += "higher is better." if first.maximize else "lower is better."
    summary += (
        " ± is one standard error over documents, of differences to the original paired by "
        "document. The search documents chose the masks, so chance favours them there; the "
        "held-out ones were never seen."
    )
    return page(
        "comparison.html",
        f"{comparison.name}: mqasearch",
        name=comparison.name,
        path=comparison_path(comparison.name),
        summary=summary,
        verdict=verdict_table(verdict),
        selectors=_selectors(comparison),
        enqueued=_enqueued(comparison),
        masks=_masks(comparison),
        scripts=SCRIPTS,
    )


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


def _link(address: str, text: str) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, text)


def _selectors(comparison: Comparison) -> Mapping[str, Any]:
    rows: list[tuple[str, ...]] = []
    heals = any(study.best_healed for study in comparison.studies)
    for study in comparison.studies:
        best = study.best
        rows.append(
            (
                _link(f"/dashboard/studies/{study.study_id}", study.selector),
                _progress([study]),
                _value(best),
                _delta(study, best),
                _held_out(study.held_out),
                _layers(best),
                format_bytes(best.kv_bytes) if best and best.kv_bytes is not None else "",
                _accuracy(study.best_confirmed),
                *(
                    (_held_out(study.healed_held_out), _accuracy(study.best_healed))
                    if heals
                    else ()
                ),
                f"{sum(row.seconds or 0 for row in study.trials):,.0f}",
            )
        )
    head = (
        *("selector", "scored", f"best{_on(comparison)}", f"to original{_on(comparison)}"),
        *("held out", "layers", "KV per token"),
        "held-out accuracy, to original [95 %]",
        *(("healed, held out", "healed, accuracy, to original [95 %]") if heals else ()),
        "seconds",
    )
    return {"head": head, "rows": rows}


def _enqueued(comparison: Comparison) -> Mapping[str, Any]:
    """The masks that the study file gives names to, whatever their size."""
    rows = [
        (row.label, _layers(row), _value(row), _delta(study, row))
        for study in comparison.studies
        for row in study.scored
        if row.label and row.n_converted
    ]
    head = (f"value{_on(comparison)}", f"to original{_on(comparison)}")
    return {"head": ("enqueued mask", "layers", *head), "rows": rows}


def _masks(comparison: Comparison) -> Mapping[str, Any]:
    """The best masks at the budget, each once, with every selector that proposed it."""
    first = comparison.studies[0]
    scored = [row for study in comparison.studies for row in study.scored]
    found: dict[str, tuple[TrialRow, list[str]]] = {}
    at_budget = (row for row in scored if first.is_at_budget(row))
    for row in ranked(at_budget, maximize=first.maximize):
        found.setdefault(row.mask, (row, []))[1].append(f"{row.selector} {row.number}")
    picture = Markup('<code title="{}">{}</code>')
    rows = [
        (
            str(place),
            picture.format(row.mask, _picture(row.mask)),
            _layers(row),
            _value(row),
            _delta(first, row),
            ", ".join(who),
        )
        for place, (row, who) in enumerate([*found.values()][:MAX_TABLE_ROWS], start=1)
    ]
    values = (f"value{_on(comparison)}", f"to original{_on(comparison)}")
    head = ("", "mask, layer 0 first", "layers", *values, "proposed by")
    return {"head": head, "rows": rows, "n": len(found)}


def _progress(studies: Iterable[StudyRows]) -> str:
    """``12 of 30, 2 running``; without the plan's size if a selector ends by itself."""
    studies = list(studies)
    scored = sum(len(study.scored) for study in studies)
    running = sum(row.state == "running" for study in studies for row in study.trials)
    planned = [study.n_trials for study in studies]
    text = str(scored)
    if all(isinstance(number, int) for number in planned):
        text += f" of {sum(number or 0 for number in planned)}"
    return f"{text}, {running} running" if running else text


def _value(row: TrialRow | None) -> str:
    return "" if row is None or row.estimate is None else str(row.estimate)


def _on(comparison: Comparison) -> str:
    """Which documents the values are of, with their number if it is the same for all."""
    scored = [row for study in comparison.studies for row in study.scored]
    counts = {sum(row.n_docs) for row in scored if row.n_docs and row.given_up is None}
    return ", search" + (f" (n={counts.pop()})" if len(counts) == 1 else "")


def _delta(study: StudyRows, row: TrialRow | None) -> str:
    if row is None or row.delta is None:
        return ""
    worse = (row.delta < 0) if study.maximize else (row.delta > 0)
    text = Estimate(row.delta, row.delta_stderr).text(signed=True)
    if row.delta_margin is not None and abs(row.delta) <= row.delta_margin:
        return Markup('<span title="its 95 % interval holds 0">{}</span>').format(text)
    return Markup('<span class="{}">{}</span>').format("worse" if worse else "better", text)


def _layers(row: TrialRow | None) -> str:
    return "" if row is None else row.words or "none"


def _budget(study: StudyRows) -> str:
    if not study.has_levels:
        layers = f"{study.space.least} of {study.space.n_layers}"
        converted = f"{layers} layers are converted"
        return converted if study.budget == layers else f"{converted} for {study.budget}"
    numbers = ", ".join(map(str, study.numbers))
    return f"budget: {study.budget}, with {numbers} KV heads in a converted layer"


def _picture(mask: str) -> str:
    """A mask as people see it at a glance: kept layers are dots."""
    return mask.replace("0", "·").replace("1", "■") if not set(mask) - {"0", "1"} else mask


def _held_out(found: HeldOut | None) -> str:
    """The objective on documents that the search never saw."""
    if found is None:
        return ""
    return f"{Estimate(found.value, found.stderr)} (n={sum(found.n_docs.values())})"


def _accuracy(confirmed: Sequence[Confirmed]) -> str:
    """Accuracy on documents that the search never saw."""
    return "; ".join(_interval(row) for row in _accuracies(confirmed))


def _accuracies(rows: Sequence[Confirmed]) -> list[Confirmed]:
    """One per task: ``acc_norm`` if the task has it, else ``acc``."""
    chosen: dict[str, Confirmed] = {}
    for metric in ("acc", "acc_norm"):
        chosen |= {row.task: row for row in rows if row.metric == metric}
    return list(chosen.values())


def _interval(row: Confirmed) -> str:
    text = f"{row.task} {row.metric} {Estimate(row.value, row.stderr)}"
    if row.delta is None or row.low is None or row.high is None:
        return text
    return f"{text}, {row.delta:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
