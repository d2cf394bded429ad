"""The Kubernetes Job, held to the published schemas and to what they cannot say."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mqasearch.launch.fleet import Fleet
from mqasearch.launch.kubernetes import job_name, manifest

IMAGE = "registry.example/mqasearch:1"
FULL = Fleet("demo", 8, gpus=1, cpus=4, memory=16, seconds=7200)
BARE = Fleet("demo", 1)


def job_of(fleet: Fleet) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(manifest(fleet, IMAGE))
    return loaded


def container_of(fleet: Fleet) -> dict[str, Any]:
    (container,) = job_of(fleet)["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize("version", ["1.29", "1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("fleet", [FULL, BARE], ids=["full", "bare"])
def test_the_published_schemas_hold(fleet: Fleet, version: str) -> None:
    kubernetes_validate.validate(job_of(fleet), version, strict=True)


def test_the_schemas_notice_a_wrong_field() -> None:
    job = job_of(FULL)
    job["spec"]["completionmode"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError, match="completionmode"):
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_each_worker_is_an_index_that_may_fail_alone() -> None:
    spec = job_of(FULL)["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 8
    assert spec["activeDeadlineSeconds"] == 7200
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy wants it
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    evicted, refused = spec["podFailurePolicy"]["rules"]
    assert evicted["action"] == "Ignore"
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailIndex", [2])
    assert refused["onExitCodes"]["containerName"] == container_of(FULL)["name"]
    assert "activeDeadlineSeconds" not in job_of(BARE)["spec"]


def test_the_url_comes_from_the_secret_alone() -> None:
    container = container_of(FULL)
    (url,) = [entry for entry in container["env"] if entry["name"] == "OPTUNA_STORAGE"]
    assert "value" not in url
    assert url["valueFrom"]["secretKeyRef"]["key"] == "OPTUNA_STORAGE"
    assert not [word for word in container["args"] if "storage" in word]


def test_resources() -> None:
    assert container_of(FULL)["resources"] == {
        "requests": {"cpu": 4, "memory": "16Gi", "nvidia.com/gpu": 1},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": 1},
    }
    assert "--device=cuda:0" in container_of(FULL)["args"]
    assert container_of(BARE)["resources"] == {"requests": {"cpu": 1}, "limits": {}}
    assert "--device=cpu" in container_of(BARE)["args"]


def test_a_worker_has_no_rights_that_it_does_not_need() -> None:
    pod = job_of(FULL)["spec"]["template"]["spec"]
    container = container_of(FULL)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # what is written goes to volumes
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    for entry in container["env"]:
        if entry.get("value", "").startswith("/"):
            assert entry["value"].startswith(tuple(mounted.values()))


@pytest.mark.parametrize("study", ["demo", "Rq3.Selectors_n2", "a" * 100, "x-" * 30, "é1"])
def test_names_are_dns_labels_with_room_for_an_index(study: str) -> None:
    name = job_name(study)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(f"{name}-99999") <= 63


def test_two_studies_have_two_names() -> None:
    studies = ["demo", "demo.greedy", "demo-greedy", "Demo", "demo_", "a" * 60, "a" * 61, "é", "è"]
    assert len({*map(job_name, studies)}) == len(studies)
    assert job_name("demo") == "mqasearch-demo"
