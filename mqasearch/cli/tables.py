"""Tables on stdout: plain where nobody looks, the same figures as JSON."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mqasearch.cli.options import Format
from mqasearch.search.compare import ComparisonRow, headline


def console() -> Console:
    """stdout, wide enough for a table where it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_json(value: Any) -> None:
    """Data to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[Any]], format: Format) -> None:
    """A listing, as a table or as a list of objects."""
    if format is Format.JSON:
        print_json([dict(zip(headers, row, strict=True)) for row in rows])
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header)
    for row in rows:
        table.add_row(*("–" if cell is None else str(cell) for cell in row))
    console().print(table)


def comparison_table(title: str, rows: Sequence[ComparisonRow]) -> Table:
    """Selectors side by side."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    several = len({row.comparison for row in rows}) > 1
    if several:
        table.add_column("comparison")
    table.add_column("selector")
    table.add_column("layers")
    table.add_column("value", justify="right")
    table.add_column("Δ original", justify="right")
    for task in _confirmed_tasks(rows):
        table.add_column(task)
        table.add_column("Δ original [95 % CI]")
    for header in ("trials", "scored", "seconds"):
        table.add_column(header, justify="right")
    for row in rows:
        first = [row.comparison] if several else []
        table.add_row(*first, *_cells(row, _confirmed_tasks(rows)))
    return table


def _confirmed_tasks(rows: Sequence[ComparisonRow]) -> list[str]:
    return list(dict.fromkeys(task for row in rows for task in row.confirmed))


def _cells(row: ComparisonRow, tasks: Sequence[str]) -> list[str]:
    if row.value is None or row.delta is None:
        cells = [row.selector, "–", "–", "–"]
    else:
        layers = ",".join(map(str, row.layers))
        cells = [row.selector, layers, f"{row.value:.4f}", f"{row.delta:+.4f}"]
    for task in tasks:
        cells += _confirmed_cells(row.confirmed.get(task))
    return [*cells, str(row.n_trials), str(row.n_scored), f"{row.seconds:.0f}"]


def _confirmed_cells(metrics: dict[str, Any] | None) -> list[str]:
    if not metrics:
        return ["–", "–"]
    name = headline(metrics)
    row = metrics[name]
    value = f"{name} {row['value']:.3f} (n={row['n_docs']})"
    if "delta" not in row:
        return [value, "–"]
    low, high = row["delta"]["ci95"]
    return [value, f"{row['delta']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"]
