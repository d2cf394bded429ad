"""Which KV heads are merged with which, if more than one is left.

Engines read contiguous groups of equal size only, so the heads of a group are moved next to one
another. Their query heads and output columns move with them, which changes no logit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import torch

from mqasearch.families import AttentionWeights

Group = tuple[int, ...]
Groups = tuple[Group, ...]

_MAX_PARTITIONS = 20_000


def best_groups(n_heads: int, n_groups: int, error: Callable[[Group], float]) -> Groups:
    """Equal groups of heads with the least sum of errors.

    All partitions are tried if there are at most 20,000 (12 heads in pairs have 10,395). If there
    are more, groups grow from the best pairs, and then heads are exchanged as long as that lowers
    the error. Both steps use the errors of pairs. The result is never worse than contiguous groups.

    Args:
        n_heads: number of heads.
        n_groups: number of groups; it divides ``n_heads``.
        error: gives the error of merging the heads of one group; its heads are ascending.

    Returns:
        Groups of ascending heads, ordered by their first head.
    """
    size = n_heads // n_groups
    remembered = cache(error)
    contiguous = tuple(tuple(range(s, s + size)) for s in range(0, n_heads, size))
    if size == 1 or n_groups == 1:
        return contiguous
    candidates: Iterator[Groups] = (
        _partitions(tuple(range(n_heads)), size)
        if _n_partitions(n_heads, size) <= _MAX_PARTITIONS
        else iter([_grown(n_heads, size, remembered)])
    )

    def total(groups: Groups) -> float:
        return sum(remembered(group) for group in groups)

    best, least = contiguous, total(contiguous)
    for groups in candidates:
        if (found := total(groups)) < least:
            best, least = groups, found
    return best


def permute_kv_heads(weights: AttentionWeights, order: Sequence[int]) -> AttentionWeights:
    """The same function with the KV heads, and their query heads, in another order."""
    if list(order) == list(range(weights.n_kv_heads)):
        return weights
    kv = torch.tensor(list(order))
    size = weights.n_heads // weights.n_kv_heads
    queries = (kv[:, None] * size + torch.arange(size)).flatten()
    moved: dict[str, Any] = {}
    for name, tensor in weights.tensors().items():
        if name == "o":
            moved[name] = tensor[:, queries]
        elif name != "o_bias":
            moved[name] = tensor[queries if name in ("q", "q_bias") else kv]
    return replace(weights, **moved)


def _n_partitions(n: int, size: int) -> int:
    groups = n // size
    ordered: int = math.factorial(size) ** groups * math.factorial(groups)
    return math.factorial(n) // ordered


def _partitions(heads: Group, size: int) -> Iterator[Groups]:
    """Every way to cut ``heads`` into groups of ``size``."""
    if not heads:
        yield ()
        return
    first, *rest = heads
    for others in combinations(rest, size - 1):
        left = tuple(head for head in rest if head not in others)
        for groups in _partitions(left, size):
            yield ((first, *others), *groups)


def _grown(n_heads: int, size: int, error: Callable[[Group], float]) -> Groups:
    pair = torch.zeros(n_heads, n_heads, dtype=torch.float64)
    for one, other in combinations(range(n_heads), 2):
        pair[one, other] = pair[other, one] = error((one, other))
    free = set(range(n_heads))
    groups: list[list[int]] = []
    while free:
        one, other = min(combinations(sorted(free), 2), key=lambda heads: float(pair[heads]))
        group = [one, other]
        free -= {one, other}
        while len(group) < size:
            nearest = min(sorted(free), key=lambda head: float(pair[head, group].sum()))
            group.append(nearest)
            free.discard(nearest)
        groups.append(group)
    while _exchange(groups, pair):
        pass
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _exchange(groups: list[list[int]], pair: torch.Tensor) -> bool:
    """Exchange the first two heads whose exchange lowers the sum over pairs; False if none does."""
    for left, right in combinations(groups, 2):
        for a, one in enumerate(left):
            for b, other in enumerate(right):
                rest_left = [head for head in left if head != one]
                rest_right = [head for head in right if head != other]
                before = pair[one, rest_left].sum() + pair[other, rest_right].sum()
                after = pair[other, rest_left].sum() + pair[one, rest_right].sum()
                if after < before - 1e-12 * abs(before):
                    left[a], right[b] = other, one
                    return True
    return False
