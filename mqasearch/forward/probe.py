"""Whether a model supports what sharing needs; the model itself is tried once, on a few tokens.

A list of families would not cover attention implementations, remote code, or the next release of
transformers.
"""

import torch
from torch import Tensor

from mqasearch.forward.batches import TokenPair, plan_of
from mqasearch.models import ResumableModel

_CLOSE = 0.1
"""Greatest relative distance of logits that count as equal. In bfloat16 two ways to batch differ by
0.01 to 0.02; a model that ignores the mask or the positions differs by about 1."""


def takes_trees(model: ResumableModel) -> bool:
    """Whether sequences in a tree get the same logits as in rows of their own."""
    pairs = _sequences(model)
    try:
        together, apart = (_logits(model, pairs, trees) for trees in (True, False))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return _close(together, apart)


def resumes(model: ResumableModel) -> bool:
    """Whether a run from the middle gives the same logits as a run from the beginning."""
    (context, continuation), *_ = _sequences(model)
    tokens = torch.tensor([context + continuation], device=model.model.device)
    middle = max(1, model.n_layers // 2)
    try:
        whole = model.states(tokens, wanted=range(1, model.n_layers))
        states = model.states(tokens, start=middle, hidden=whole[middle])
        last = model.n_layers
        logits = [model.logits(end[last][0]) for end in (whole, states)]
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return len(whole) == last and _close(*logits)


def _sequences(model: ResumableModel) -> list[TokenPair]:
    """Three questions on one context, two of which share the beginning of their answer."""
    vocabulary = model.model.config.get_text_config().vocab_size
    tokens = tuple((5 + 7 * number) % vocabulary for number in range(11))
    context, answer = tokens[:3], tokens[3:5]
    return [
        (context, answer + tokens[5:7]),
        (context, answer + tokens[7:8]),
        (context, tokens[8:]),
    ]


def _logits(model: ResumableModel, pairs: list[TokenPair], trees: bool) -> Tensor:
    """[targets, vocabulary]: the logits at all targets, ordered by request."""
    plan = plan_of(
        pairs,
        max_length=64,
        batch_tokens=64,
        row_tokens=64,
        trees=trees,
        device=model.model.device,
    )
    rows: list[tuple[int, int, Tensor]] = []
    for batch in plan.batches:
        states = model.states(batch.tokens, positions=batch.positions, visible=batch.visible)
        chosen = states[model.n_layers].flatten(0, 1)[batch.scored][batch.places]
        owners, targets = batch.owners.tolist(), batch.targets.tolist()
        rows += zip(owners, targets, model.logits(chosen), strict=True)
    ordered = sorted(rows, key=lambda row: row[:2])
    return torch.stack([logits for _, _, logits in ordered])


def _close(one: Tensor, two: Tensor) -> bool:
    one, two = one.double(), two.double()
    spread = (two - two.mean(dim=-1, keepdim=True)).norm()
    return bool((one - two).norm() <= _CLOSE * spread)
