"""What happens to a study when its file asks for more documents.

More search documents
    Every selector searches again, in a new Optuna study: values on 16 and on 64 documents cannot be
    compared, so they are never in the same study. The new comparison is called ``NAME@64``, and so
    is the study. From then on ``NAME`` means the latest one; ``NAME@16`` means the first one. A
    mask that was scored before is scored on the new documents alone, because a smaller limit is a
    prefix of a larger one. Workers of the earlier studies end when these end.

More confirmation documents
    The studies stay. Their number of held-out documents is changed, and the best masks are
    confirmed again; only the new documents are scored.

Fewer documents of either kind are refused, because the known results are from more.
"""

import math
from collections.abc import Mapping
from typing import Any

from optuna.storages import BaseStorage

from mqasearch.errors import UserError
from mqasearch.record import STUDY_KEY, StudyFacts, change_together
from mqasearch.spec import StudySpec, changes

_MARK = "@"
"""Separates a name from its number of documents; a name in a study file cannot contain it."""

_KEYS = ("search", "confirmation")


def meant_by(name: str, known: Mapping[str, StudyFacts]) -> dict[str, StudyFacts]:
    """The latest Optuna studies of a comparison, or of a whole study file.

    Args:
        name: the comparison's or the study file's name, with or without the number of documents.
        known: name of the Optuna study → facts, for every study.
    """
    for of in (_comparison, _study):
        found = {n: facts for n, facts in known.items() if name in _names(of(facts), facts)}
        if found:
            return latest(found)
    return {}


def latest(studies: Mapping[str, StudyFacts]) -> dict[str, StudyFacts]:
    """The studies that search the most documents."""
    most = max((_size(_documents(facts)["search"]) for facts in studies.values()), default=0)
    return {
        name: facts for name, facts in studies.items() if _size(_documents(facts)["search"]) == most
    }


def earlier(comparison: str, known: Mapping[str, StudyFacts]) -> dict[str, StudyFacts]:
    """The latest Optuna studies of a study file's comparison; none if it is new."""
    return latest({n: facts for n, facts in known.items() if _comparison(facts) == comparison})


def mark(studies: Mapping[str, StudyFacts], spec: StudySpec) -> str:
    """The suffix of a comparison's name, such as ``@64``; empty if the comparison is new.

    Args:
        studies: the latest studies of the comparison.
        spec: the comparison's spec, as the study file gives it now.

    Raises:
        UserError: the file asks for fewer documents, or anything else differs.
    """
    if not studies:
        return ""
    first = next(iter(studies.values()))
    theirs = first.study_spec
    before, after = theirs.documents, spec.documents
    if "full" not in (before.search, after.search):
        for key in _KEYS:
            _refuse_fewer(spec.name, key, getattr(before, key), getattr(after, key))
        sizes = {key: getattr(after, key) for key in _KEYS}
        theirs = theirs.model_copy(update={"documents": before.model_copy(update=sizes)})
    if differing := changes(theirs, spec):
        raise UserError(refusal(first.name, differing))
    if before.search != after.search:
        return _MARK + _label(after.search)
    return first.comparison.removeprefix(spec.name)


def hold_out(storage: BaseStorage, studies: Mapping[str, StudyFacts], spec: StudySpec) -> None:
    """Store the file's number of held-out documents in the studies.

    Studies that search another number of documents than the file asks for are left alone.
    """
    n_docs = spec.documents.confirmation

    def change(row: Any) -> Any:
        documents = {**row["spec"]["documents"], "confirmation": n_docs}
        return row | {"spec": row["spec"] | {"documents": documents}}

    numbers = [
        storage.get_study_id_from_name(name)
        for name, facts in studies.items()
        if _documents(facts)["search"] == spec.documents.search
        and _documents(facts)["confirmation"] != n_docs
    ]
    change_together(storage, numbers, STUDY_KEY, change)


def refusal(study: str, differing: list[str]) -> str:
    """A message that a study cannot be changed like this, and what to do instead."""
    line = (
        f"study {study!r} exists with another spec ({'; '.join(differing)}); "
        "choose another name for the study, or another --storage"
    )
    if any(word in row for row in differing for word in ("n_trials", "n_masks")):
        line += "; more trials are added by `mqasearch run … --n-trials +20`"
    return line


def _refuse_fewer(study: str, key: str, before: Any, after: Any) -> None:
    if _size(after) < _size(before):
        raise UserError(
            f"study {study!r} has documents.{key}: {_label(before)}, and {_label(after)} would be "
            f"fewer: give {_label(before)} or more, choose another name for the study, or another "
            "--storage"
        )


def _comparison(facts: StudyFacts) -> str:
    return facts.comparison.partition(_MARK)[0]


def _study(facts: StudyFacts) -> str:
    return facts.study.partition(_MARK)[0]


def _names(name: str, facts: StudyFacts) -> tuple[str, str]:
    return name, f"{name}{_MARK}{_label(_documents(facts)['search'])}"


def _documents(facts: StudyFacts) -> Mapping[str, Any]:
    """The documents entry as stored; the spec is not validated only to find studies by name."""
    documents: Mapping[str, Any] = facts.spec.get("documents", {})
    return {"search": None, "confirmation": None, **documents}


def _size(n_docs: int | str | None) -> float:
    """A number of documents; infinite for all documents."""
    return n_docs if isinstance(n_docs, int) else math.inf


def _label(n_docs: int | str | None) -> str:
    return "all" if n_docs is None else str(n_docs)
