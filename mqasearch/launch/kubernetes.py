"""A Kubernetes Indexed Job, as a manifest for ``kubectl apply``. Needs Kubernetes 1.29 or newer."""

import hashlib
import re
from typing import Any

import yaml

from mqasearch.launch.fleet import Fleet

SECRET = "mqasearch-storage"  # noqa: S105
"""The name of the Secret that holds the database's URL under ``OPTUNA_STORAGE``."""

STOP_SECONDS = 120
RETRIES = 3
KEEP_SECONDS = 7 * 86400
USER = 10001
"""User id of the image that dashboards/Dockerfile makes."""

_LONGEST = 50

NEXT_STEPS = (
    f"database: kubectl create secret generic {SECRET} --from-env-file=storage.env, a file with "
    "OPTUNA_STORAGE=postgresql://...",
    "submit: kubectl apply -f {path}",
)

_HEAD = """\
# {n} worker(s) of {study}. The database's URL comes from a Secret, made of a file that holds
# OPTUNA_STORAGE=postgresql://... and that nobody else may read:
#   kubectl create secret generic {secret} --from-env-file=storage.env
#   kubectl apply -f {name}.yaml
# /cache (models and data) ends with each pod; put a PersistentVolumeClaim there to keep it.
"""


def job_name(study: str) -> str:
    """A DNS label, short enough for Kubernetes to add an index and a suffix.

    Two studies have different names: if a part of the study's name is lost, its hash is added.
    """
    whole = f"mqasearch-{study}"
    label = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    if label == whole and len(label) <= _LONGEST:
        return label
    mark = hashlib.sha256(study.encode()).hexdigest()[:8]
    return f"{label[: _LONGEST - len(mark) - 1].strip('-')}-{mark}"


def manifest(fleet: Fleet, image: str) -> str:
    """The job as YAML, with a comment above it that says what to do with it."""
    name = job_name(fleet.study)
    head = _HEAD.format(n=fleet.n_workers, study=fleet.study, secret=SECRET, name=name)
    return head + yaml.safe_dump(job(fleet, image), sort_keys=False)


def job(fleet: Fleet, image: str) -> dict[str, Any]:
    """A Job of ``fleet.n_workers`` indexes.

    A pod that is evicted does not count as failed; one that fails is started again, ``RETRIES``
    times for each index; one that refuses its input (exit code 2) is not.
    """
    name = job_name(fleet.study)
    labels = {"app.kubernetes.io/name": "mqasearch", "app.kubernetes.io/instance": name}
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": fleet.n_workers,
        "parallelism": fleet.n_workers,
        "backoffLimitPerIndex": RETRIES,
        "ttlSecondsAfterFinished": KEEP_SECONDS,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailIndex",
                    "onExitCodes": {"containerName": "worker", "operator": "In", "values": [2]},
                },
            ]
        },
        "template": {"metadata": {"labels": labels}, "spec": _pod(fleet, image)},
    }
    if fleet.seconds is not None:
        spec["activeDeadlineSeconds"] = fleet.seconds
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _pod(fleet: Fleet, image: str) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",  # podFailurePolicy requires it
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(fleet, image)],
        "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }


def _container(fleet: Fleet, image: str) -> dict[str, Any]:
    limits: dict[str, Any] = {}  # no CPU limit: a worker may use what its node has to spare
    if fleet.memory:
        limits["memory"] = f"{fleet.memory}Gi"
    if fleet.gpus:
        limits["nvidia.com/gpu"] = fleet.gpus
    plain = {
        "OMP_NUM_THREADS": str(fleet.cpus),
        "HOME": "/tmp",  # noqa: S108
        "MQASEARCH_CACHE": "/cache",
        "HF_HOME": "/cache/huggingface",
    }
    url = {"secretKeyRef": {"name": SECRET, "key": "OPTUNA_STORAGE"}}
    return {
        "name": "worker",
        "image": image,
        "command": ["mqasearch"],
        "args": list(fleet.arguments),
        "env": [
            {"name": "OPTUNA_STORAGE", "valueFrom": url},
            *({"name": key, "value": value} for key, value in plain.items()),
        ],
        "resources": {"requests": {"cpu": fleet.cpus, **limits}, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
