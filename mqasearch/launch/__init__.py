"""Many workers at once: processes of one machine, Ray, Slurm, Kubernetes."""

from mqasearch.launch import kubernetes, slurm
from mqasearch.launch.fleet import Fleet, check_engine, check_shared, only_here, seconds_of
from mqasearch.launch.lifeline import end_with
from mqasearch.launch.local import Child, devices_for, gpus, run_children, threads_for

__all__ = [
    "Child",
    "Fleet",
    "check_engine",
    "check_shared",
    "devices_for",
    "end_with",
    "gpus",
    "kubernetes",
    "only_here",
    "run_children",
    "seconds_of",
    "slurm",
    "threads_for",
]
