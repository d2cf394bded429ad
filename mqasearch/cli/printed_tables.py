"""Tables on stdout, plain if that is not a terminal, and the same figures as JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqasearch.cli.options import Format
from mqasearch.statistics import Estimate
from mqasearch.study import ComparisonRow, Verdict, headline, sentence, size_in_words

NONE = "–"


def console() -> Console:
    """A console on stdout, wide enough for a table if that is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_json(value: Any) -> None:
    """Print data to stdout as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[Any]], format: Format) -> None:
    """Print a listing, as a table or as a list of objects."""
    if format is Format.JSON:
        print_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(Text(header))  # Text, since "[range]" would be taken for markup
    for row in rows:
        table.add_row(*(Text(NONE if cell is None else str(cell)) for cell in row))
    console().print(table)


class Column(NamedTuple):
    """One column of a table: a header, maybe of two lines, and a cell per row."""

    header: str
    cells: Sequence[str]
    is_number: bool = True


def comparison_table(title: str, rows: Sequence[ComparisonRow]) -> Table:
    """Selectors side by side: results on the documents that chose a mask, then on held-out ones."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    columns = [
        *_names(rows),
        *_searched(rows),
        *_held_out(rows),
        *_headlines(rows),
        *_after_healing(rows),
        Column("trials", [str(row.n_trials) for row in rows]),
        Column("scored", [str(row.n_scored) for row in rows]),
        Column("seconds", [f"{row.seconds:.0f}" for row in rows]),
    ]
    for column in columns:
        table.add_column(column.header, justify="right" if column.is_number else "left")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def print_verdict(verdict: Verdict) -> None:
    """Print every size that was confirmed, and the answer."""
    table = Table(
        title="verdict", title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for header in ("layers", "KV cache", "comparison", "selector", "held-out", "verdict"):
        table.add_column(header, overflow="fold")
    for size in verdict.sizes:
        table.add_row(
            f"{size.n_converted} of {size.n_layers}",
            f"−{100 * size.kv_bytes_saved:.0f} %",
            size.comparison,
            size.selector,
            size_in_words(size),
            size.result if verdict.is_final else "not yet",
        )
    if verdict.sizes:
        console().print(table)
    print(sentence(verdict))


def _names(rows: Sequence[ComparisonRow]) -> Iterator[Column]:
    if len({row.comparison for row in rows}) > 1:
        yield Column("comparison", [row.comparison for row in rows], is_number=False)
    yield Column("selector", [row.selector for row in rows], is_number=False)
    layers = [NONE if row.mask is None else row.words for row in rows]
    yield Column("layers", layers, is_number=False)


def _searched(rows: Sequence[ComparisonRow]) -> Iterator[Column]:
    """Results on the documents that chose the masks."""
    counts = [sum(row.n_docs.values()) or None for row in rows]
    values = [None if row.value is None else Estimate(row.value, row.stderr) for row in rows]
    yield _estimates(_metric(rows), "search", values, counts)
    if any(row.delta != row.value for row in rows):  # if not, the value is a difference
        deltas = [
            None if row.delta is None else Estimate(row.delta, row.delta_stderr) for row in rows
        ]
        yield _estimates("Δ original", "search", deltas, counts, signed=True)


def _held_out(rows: Sequence[ComparisonRow]) -> Iterator[Column]:
    """The search's metric on documents that it never saw."""
    confirmed = [(task, headline(of)) for row in rows for task, of in row.confirmed.items() if of]
    has_own = len({task for task, _ in confirmed}) == 1
    if not confirmed or (has_own and {name for _, name in confirmed} == {_metric(rows)}):
        return
    found = [row.held_out for row in rows]
    values = [None if each is None else Estimate(each.value, each.stderr) for each in found]
    counts = [None if each is None else sum(each.n_docs.values()) for each in found]
    yield _estimates(_metric(rows), "held out", values, counts)


def _headlines(rows: Sequence[ComparisonRow]) -> Iterator[Column]:
    """The held-out accuracy of every task, and its paired difference to the original's."""
    return _accuracies([row.confirmed for row in rows], "held out")


def _after_healing(rows: Sequence[ComparisonRow]) -> Iterator[Column]:
    """Held-out results of the healed masks, if there are any; first the search's metric."""
    if not any(row.healed for row in rows):
        return
    found = [row.healed_held_out for row in rows]
    values = [None if each is None else Estimate(each.value, each.stderr) for each in found]
    counts = [None if each is None else sum(each.n_docs.values()) for each in found]
    yield _estimates(_metric(rows), "healed", values, counts)
    yield from _accuracies([row.healed for row in rows], "healed")


def _accuracies(confirmed: Sequence[dict[str, dict[str, Any]]], documents: str) -> Iterator[Column]:
    for task in dict.fromkeys(task for each in confirmed for task in each):
        of_task = [each.get(task) or {} for each in confirmed]
        name = next((headline(metrics) for metrics in of_task if metrics), "")
        found = [metrics.get(name) for metrics in of_task]
        values = [each and Estimate(each["value"], each["stderr"]) for each in found]
        counts = [each and each["n_docs"] for each in found]
        yield _estimates(f"{task} {name}", documents, values, counts)
        yield Column("Δ original\n[95 % CI]", [_interval(each) for each in found])


def _metric(rows: Sequence[ComparisonRow]) -> str:
    metrics = {row.metric for row in rows}
    return metrics.pop() if len(metrics) == 1 else "value"


def _estimates(
    name: str,
    documents: str,
    values: Sequence[Estimate | None],
    counts: Sequence[int | None],
    *,
    signed: bool = False,
) -> Column:
    """Values with standard errors; the number of documents is in the header if all have the same.

    Args:
        name: name of what is estimated.
        documents: which documents they are, in a word or two.
        values: one for each row.
        counts: number of documents of each row's value; None if it is unknown.
        signed: whether they are differences.
    """
    known = {count for count in counts if count is not None}
    header = f"{name}\n{documents}" + (f", n={known.pop()}" if len(known) == 1 else "")
    cells = []
    for value, count in zip(values, counts, strict=True):
        cell = NONE if value is None else value.text(signed=signed)
        of_its_own = bool(known) and value is not None and count is not None
        cells.append(f"{cell} (n={count})" if of_its_own else cell)
    return Column(header, cells)


def _interval(metric: dict[str, Any] | None) -> str:
    if metric is None or "delta" not in metric:
        return NONE
    low, high = metric["delta"]["ci95"]
    return f"{metric['delta']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
