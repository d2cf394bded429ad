"""More trials for a study, whether it has ended or not.

A selector takes more trials if it ends after a number of trials. If it ends after a number of masks
at the budget (``gp``), it takes as many more masks. A selector whose plan ends by itself takes
none.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from optuna.storages import BaseStorage

from mqasearch.errors import UserError
from mqasearch.record import STUDY_KEY, StudyFacts, change_together, facts_of
from mqasearch.selectors import SELECTORS
from mqasearch.spec import StudySpec


@dataclass(frozen=True, slots=True)
class More:
    """How many trials a selector is to have.

    Attributes:
        n: a number of trials, ≥ 1.
        adds: True if ``n`` is added to the trials that the selector has. False if ``n`` is the
            least that it is to have in all, so that asking twice changes nothing.
    """

    n: int
    adds: bool

    def beyond(self, present: int) -> int:
        """Number of trials to add to ``present`` trials."""
        return self.n if self.adds else max(0, self.n - present)


def check_extendable(spec: StudySpec) -> None:
    """Check, before anything is made, that a study has a selector that takes more trials.

    Raises:
        UserError: the study has none.
    """
    for selector in spec.selectors:
        kind = SELECTORS[selector.name]
        if selector.n_trials is not None or not kind.ends or kind.counted is not None:
            return
    names = ", ".join(selector.name for selector in spec.selectors) or "that are enqueued"
    takers = ", ".join(name for name, kind in SELECTORS.items() if not kind.ends or kind.counted)
    raise UserError(
        f"no more trials for {names}: what they score follows from the model and the budget; "
        f"add one of {takers} to the selectors, under another name of the study"
    )


def extend(
    storage: BaseStorage, studies: Mapping[str, StudyFacts], more: More
) -> dict[str, tuple[int, int]]:
    """Give the studies more trials, all of them or none.

    Workers notice the new trials when they have no others left.

    Args:
        storage: the storage of the studies.
        studies: name → facts.
        more: how many trials each study that takes more is to have.

    Returns:
        For each study that got more: how many it had, and how many it has now.
    """
    call = uuid4().hex
    had: dict[str, int] = {}

    def change(row: Any) -> Any:
        facts = facts_of(row)
        present = facts.allotted
        if present is None or facts.extension == call:
            return row
        had[facts.name] = present
        extra = more.beyond(present)
        return row | asdict(facts.extended(extra, call)) if extra else row

    numbers = [storage.get_study_id_from_name(name) for name in studies]
    now = [facts_of(row) for row in change_together(storage, numbers, STUDY_KEY, change)]
    return {
        facts.name: (had[facts.name], facts.allotted)
        for facts in now
        if facts.allotted is not None and had.get(facts.name) != facts.allotted
    }
