"""Studies: work that is left, best masks, comparison, verdict and status."""

from mqasearch.study.comparison_rows import (
    ComparisonRow,
    FinishedTrial,
    best_trial,
    compare,
    finished,
    headline,
)
from mqasearch.study.ending import fault_of_original
from mqasearch.study.generations import earlier, hold_out, mark, refusal
from mqasearch.study.held_out_values import HeldOut, Part, held_out, parts_of
from mqasearch.study.out_of_memory import last_attempt, pause_before
from mqasearch.study.ranking import best, front, improvements, ranked
from mqasearch.study.recording import Record, bring_up
from mqasearch.study.selection import (
    Outlook,
    Selection,
    facts_of_file,
    find_studies,
    known_studies,
    open_selections,
    studies_of_file,
)
from mqasearch.study.status import STATUS_HEADERS, WORKER_HEADERS, endings, study_rows, worker_rows
from mqasearch.study.verdict_words import as_data, sentence, size_in_words
from mqasearch.study.verdicts import Size, Verdict, verdict

__all__ = [
    "STATUS_HEADERS",
    "WORKER_HEADERS",
    "ComparisonRow",
    "FinishedTrial",
    "HeldOut",
    "Outlook",
    "Part",
    "Record",
    "Selection",
    "Size",
    "Verdict",
    "as_data",
    "best",
    "best_trial",
    "bring_up",
    "compare",
    "earlier",
    "endings",
    "facts_of_file",
    "fault_of_original",
    "find_studies",
    "finished",
    "front",
    "headline",
    "held_out",
    "hold_out",
    "improvements",
    "known_studies",
    "last_attempt",
    "mark",
    "open_selections",
    "parts_of",
    "pause_before",
    "ranked",
    "refusal",
    "sentence",
    "size_in_words",
    "studies_of_file",
    "study_rows",
    "verdict",
    "worker_rows",
]
