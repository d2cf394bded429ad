"""The Slurm script: read by shellcheck, and run by bash with a worker that notes its signals."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mqasearch.launch.fleet import Fleet
from mqasearch.launch.slurm import script

WORKER = """\
import os, signal, sys, time
from pathlib import Path

def note(line):
    with open("notes", "a") as file:
        print(line, file=file)

def stop(number, frame):
    note(f"signal {number}")
    time.sleep(0.3)
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
note(" ".join(sys.argv[1:]))
note(os.environ["OPTUNA_STORAGE"])
if (code := os.environ.get("WORKER_ENDS")) is not None:
    sys.exit(int(code))
note("ready")
time.sleep(60)
"""
FULL = Fleet("demo", 8, gpus=1, cpus=4, memory=16, seconds=93600)


class Task:
    """One array task: a folder, an environment, the running script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "worker.py").write_text(WORKER)
        (folder / "bin").mkdir()
        scontrol = folder / "bin" / "scontrol"
        scontrol.write_text('#!/bin/bash\necho "scontrol $*" >> notes\n')
        scontrol.chmod(0o755)
        self.secret = folder / ".config" / "mqasearch" / "storage.env"
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "3",
        }

    def keep_secret(self, text: str, mode: int = 0o600) -> None:
        self.secret.parent.mkdir(parents=True)
        self.secret.write_text(text)
        self.secret.chmod(mode)

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        text = script(FULL, [sys.executable, str(self.folder / "worker.py")])
        (self.folder / "script").write_text(text)
        return subprocess.Popen(
            ["bash", "script"],
            cwd=self.folder,
            env=self.environment | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while "ready" not in self.notes():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


@pytest.mark.parametrize("fleet", [FULL, Fleet("a.b_c-d", 1)], ids=["full", "bare"])
def test_shellcheck_has_nothing_to_say(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script(fleet, ["/a path/python", "-m", "mqasearch"]))
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--shell=bash", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def options_of(text: str) -> dict[str, Any]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, flags=re.MULTILINE)
    assert len(found) == text.count("#SBATCH")
    return dict(found)


def test_options() -> None:
    text = script(FULL, ["mqasearch"])
    assert options_of(text) == {
        "job-name": "mqasearch-demo",
        "array": "0-7",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "4",
        "gres": "gpu:1",
        "mem": "16G",
        "time": "1-02:00:00",
        "signal": "B:USR1@120",
        "output": "mqasearch-demo_%A_%a.log",
        "open-mode": "append",
        "requeue": "",
    }
    # sbatch stops looking for options at the first command
    assert text.rindex("#SBATCH") < text.index("\nset -")
    assert not {"gres", "mem", "time"} & options_of(script(Fleet("demo", 1), ["mqasearch"])).keys()


def test_a_worker_that_ends_ends_the_task(task: Task) -> None:
    url = r"postgresql://u:p$(touch oops)&'\%40@h/d?sslmode=require"
    task.keep_secret(f"# the database\nOPTUNA_STORAGE={url}\n")
    with task.start(WORKER_ENDS="0") as process:
        assert process.wait(30) == 0
    command, stored = task.notes()
    assert command == "worker --study-name=demo --device=cuda:0"
    assert stored == url  # taken literally, as kubectl does with the same file
    assert not (task.folder / "oops").exists()


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_the_tasks_and_is_not_queued_again(task: Task, code: int) -> None:
    with task.start(WORKER_ENDS=str(code), OPTUNA_STORAGE="postgresql://h/d") as process:
        assert process.wait(30) == code
    assert not [line for line in task.notes() if "scontrol" in line]


def test_before_the_end_of_its_time_the_worker_is_told_once_and_the_task_queued_again(
    task: Task,
) -> None:
    with task.start(OPTUNA_STORAGE="postgresql://h/d") as process:
        task.wait_until_ready()
        process.send_signal(signal.SIGUSR1)  # Slurm's B:USR1: to the script alone
        assert process.wait(30) == 143
    assert task.notes()[-3:] == ["ready", "signal 15", "scontrol requeue 77_3"]


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(75, "", True), (75, "9", True), (75, "10", False), (2, "", False)],
)
def test_an_outage_of_the_database_queues_the_task_again(
    task: Task, code: int, restarts: str, again: bool
) -> None:
    (task.folder / "worker.py").write_text(f"raise SystemExit({code})")
    environment = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    with task.start(OPTUNA_STORAGE="postgresql://h/d", **environment) as process:
        assert process.wait(30) == code
    assert ("scontrol requeue 77_3" in task.notes()) == again


def test_a_cancelled_task_is_not_queued_again(task: Task) -> None:
    with task.start(OPTUNA_STORAGE="postgresql://h/d") as process:
        task.wait_until_ready()
        os.killpg(process.pid, signal.SIGTERM)  # every process of the job, as Slurm does
        assert process.wait(30) == 143
    assert task.notes()[-2:] == ["ready", "signal 15"]


def test_a_worker_that_ends_well_after_all_is_not_queued_again(task: Task) -> None:
    worker = task.folder / "worker.py"
    worker.write_text(WORKER.replace("sys.exit(143)", "sys.exit(0)"))
    with task.start(OPTUNA_STORAGE="postgresql://h/d") as process:
        task.wait_until_ready()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 0
    assert task.notes()[-2:] == ["ready", "signal 15"]


@pytest.mark.parametrize(
    ("mode", "message"), [(None, "cannot be read"), (0o644, "chmod 600"), (0o640, "chmod 600")]
)
def test_a_missing_or_open_secret_is_refused(task: Task, mode: int | None, message: str) -> None:
    if mode is not None:
        task.keep_secret("OPTUNA_STORAGE=postgresql://u:canary@h/d\n", mode)
    with task.start() as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in err
    assert err.count("\n") == 1
    assert "canary" not in err
    assert not task.notes()
