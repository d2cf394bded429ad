"""Studies whose best mask has no held-out result, because a score is missing."""

from collections.abc import Sequence

from mqasearch.record import HEALED, unconfirmed
from mqasearch.study.comparison_rows import best_trial
from mqasearch.study.ending import remedy
from mqasearch.study.selection import Selection


def why_unconfirmed(selections: Sequence[Selection]) -> list[str]:
    """One line for each reason, with the names of the studies that it applies to."""
    names: dict[tuple[str, str], list[str]] = {}
    for selection in selections:
        row, best = unconfirmed(selection.study.user_attrs), best_trial(selection.study)
        if row is not None and best is not None and row["trial_number"] == best.number:
            reason = row["whose"], " ".join(row["fault"].split())
            names.setdefault(reason, []).append(selection.study.study_name)
    dtype = selections[0].dtype()
    lines = []
    for (whose, fault), studies in names.items():
        named = ", ".join(map(repr, studies))
        if whose == HEALED:
            lines.append(f"{named}: the best mask is not healed ({fault}); results are those of it")
            continue
        lines.append(
            f"{named}: no held-out result, because {whose} cannot be scored on the confirmation "
            f"documents ({fault}), and a result on the documents that chose a mask flatters it; "
            f"{remedy(fault, dtype, 'another dtype or other tasks')}"
        )
    return lines
