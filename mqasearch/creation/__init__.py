"""Makes studies in a database from a study file, and adds trials to existing studies."""

from mqasearch.creation.create import create_studies, versions
from mqasearch.creation.model_study import default_study, joined
from mqasearch.creation.more_trials import More, check_extendable, extend
from mqasearch.creation.names import checked_study, load_study
from mqasearch.creation.study_schema import study_schema

__all__ = [
    "More",
    "check_extendable",
    "checked_study",
    "create_studies",
    "default_study",
    "extend",
    "joined",
    "load_study",
    "study_schema",
    "versions",
]
