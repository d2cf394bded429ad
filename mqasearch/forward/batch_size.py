"""How large a batch may be while memory is short: it shrinks at once and grows again slowly."""

FIRST_WAIT = 4
"""Runs that succeed before a larger batch is tried."""


class BatchSize:
    """Tokens in a batch: halved when memory runs out, doubled again after some runs.

    Another process may have had the memory, and may have given it back. A larger size is on
    probation for ``wait`` runs. If it fails within them, it is tried again after twice as many runs
    (exponential back-off), so that a lasting limit costs less and less.

    Attributes:
        most: the size at first; it is never exceeded.
        tokens: the size now.
        wait: number of runs that must succeed before the next growth.
    """

    def __init__(self, most: int, wait: int = FIRST_WAIT) -> None:
        self.most = most
        self.tokens = most
        self.wait = wait
        self._first_wait = wait
        self._proven = most
        """The size of the last run that succeeded, growth that was undone left out."""
        self._grown_from = most
        """The size before the last growth."""
        self._n_runs = 0
        """Number of runs that succeeded since the size changed."""
        self._on_probation = False
        """Whether the size has grown and not held for long enough yet."""

    def ran(self) -> None:
        """Note a run that succeeded."""
        self._proven = self.tokens
        self._n_runs += 1
        if self._on_probation and self._n_runs >= self.wait:
            self._on_probation = False
            self.wait = self._first_wait

    def grow(self) -> bool:
        """Double the size if enough runs have succeeded; return whether it has changed."""
        if self.tokens == self.most or self._n_runs < self.wait:
            return False
        self._grown_from = self.tokens
        self._change(min(2 * self.tokens, self.most))
        self._on_probation = True
        return True

    def shrink(self) -> bool:
        """Halve the size after a run that ran out of memory, or undo a growth.

        Returns:
            False if there is no smaller size. Then no size would have helped, and the next run
            begins with the size of the last run that succeeded.
        """
        if self._on_probation:
            self._on_probation = False
            self.wait *= 2
            self._proven = self._grown_from
            self._change(self._grown_from)
            return True
        shrinks = self.tokens > 1
        self._change(self.tokens // 2 if shrinks else self._proven)
        return shrinks

    def _change(self, tokens: int) -> None:
        self.tokens = tokens
        self._n_runs = 0
