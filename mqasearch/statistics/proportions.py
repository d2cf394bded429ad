"""Two 0/1 metrics on the same documents: the exact sign test, and the interval that inverts it.

Only documents on which the two differ say which is better. Given how many these are, the number on
which the first is ahead is binomial, with probability 1/2 if neither is better: the exact test of
McNemar (1947). An interval for the difference of the two rates also needs the rate at which they
differ. Fay & Lumbard (2021, "Confidence intervals for difference in proportions for matched pairs
compatible with exact McNemar's or sign tests", Statistics in Medicine 40) meld the exact
(Clopper–Pearson) confidence distributions of both: the interval holds 0 exactly when the test does
not reject, and is exact if only one of the two is ever ahead.
"""

import math

import numpy as np
from scipy import optimize, special

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)
_UNIT_NODES, _UNIT_WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def sign_test(more: int, fewer: int) -> float:
    """Two-sided p value of the hypothesis that both are ahead equally often."""
    return min(1.0, 2 * float(special.bdtr(min(more, fewer), more + fewer, 0.5)))


def difference_limit(more: int, fewer: int, n: int, tail: float) -> float:
    """The upper confidence limit of P(first ahead) − P(second ahead).

    The share s of the differing documents on which the first is ahead ~ Beta(more + 1, fewer); the
    rate r at which the two differ ~ Beta(d + 1, n − d) if s > 1/2, else Beta(d, n − d + 1). The
    limit is a quantile of r·(2s − 1).

    Args:
        more: documents on which the first is ahead.
        fewer: documents on which the second is ahead.
        n: all documents.
        tail: probability beyond the limit.

    Returns:
        Between −1 and 1; below 0 exactly when the one-sided sign test rejects at ``tail``.
    """
    differ = more + fewer
    if fewer == 0:  # s = 1: the limit of one rate
        return _quantile(differ + 1, n - differ, 1 - tail)
    above = float(special.bdtr(more, differ, 0.5))  # P(s > 1/2)
    if above < tail:
        lean = 1 - 2 * special.betaincinv(more + 1, fewer, (1 - above) * _UNIT_NODES)
        # P(r(2s − 1) ≤ −x) = 1 − tail, for x > 0
        return -_solve(lean, differ, n - differ + 1, (1 - tail) / (1 - above))
    if differ == n:  # r = 1: the limit of one share
        return max(0.0, 1 - 2 * float(special.betaincinv(fewer, more + 1, tail)))
    # s > 1/2 by the distribution of 1 − s, which keeps its digits
    lean = 1 - 2 * special.betaincinv(fewer, more + 1, above * _UNIT_NODES)
    return _solve(lean, differ + 1, n - differ, tail / above)


def _solve(lean: np.ndarray, a: int, b: int, tail: float) -> float:
    """The x with P(r · lean > x) = tail, for r ~ Beta(a, b) and evenly spread quantiles of lean."""
    lean = np.maximum(lean, 1e-300)

    def excess(x: float) -> float:
        beyond = special.betainc(b, a, 1 - np.minimum(x / lean, 1.0))  # P(r > x / lean)
        return float(_UNIT_WEIGHTS @ beyond) - tail

    if excess(0.0) <= 0.0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, 1.0, xtol=1e-12))


def _quantile(a: int, b: int, level: float) -> float:
    return 1.0 if b == 0 else float(special.betaincinv(a, b, level))


def least_documents(margin: float, tail: float = 0.05) -> int:
    """The fewest documents on which a 0/1 metric's loss can be shown to be below a margin.

    In that case the two models agree on all documents, and the limit is 1 − tail^(1/n).
    """
    if margin >= 1:
        return 1
    n = max(1, math.ceil(math.log(tail) / math.log1p(-margin)) - 1)
    while difference_limit(0, 0, n, tail) >= margin:
        n += 1
    return n
