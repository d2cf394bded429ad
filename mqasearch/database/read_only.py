"""Saying that a transaction only reads.

SQLite's engine here takes the write lock when a transaction begins (see
:mod:`mqasearch.database.connecting`); what only reads need not wait for it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Reading(threading.local):
    now = False


_reading = _Reading()


@contextmanager
def reading() -> Iterator[None]:
    """Transactions that this thread begins within only read: on SQLite they wait for nobody."""
    before, _reading.now = _reading.now, True
    try:
        yield
    finally:
        _reading.now = before


def is_reading() -> bool:
    """Whether this thread is within :func:`reading`."""
    return _reading.now
