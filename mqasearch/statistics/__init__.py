"""Is a difference more than noise? Errors, intervals, paired tests, non-inferiority."""

from mqasearch.statistics.estimate import Estimate, weighted_mean
from mqasearch.statistics.medians import median_interval
from mqasearch.statistics.multiplicity import corrected
from mqasearch.statistics.noninferiority import NonInferiority, first_in_order
from mqasearch.statistics.paired import paired_difference
from mqasearch.statistics.proportions import least_documents

__all__ = [
    "Estimate",
    "NonInferiority",
    "corrected",
    "first_in_order",
    "least_documents",
    "median_interval",
    "paired_difference",
    "weighted_mean",
]
