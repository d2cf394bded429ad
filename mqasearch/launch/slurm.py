"""A Slurm job array, as a file for ``sbatch``.

A worker should see exactly one signal, since a second one would end it before it has given its
trial back:

- Before the time is up Slurm sends SIGUSR1 to the script alone (``B:``). The script passes it on
  as SIGTERM, and puts the task back into the queue.
- ``scancel`` and preemption send SIGTERM to every process of the job, so the script only waits.
  If SIGTERM were also the signal for the end of the time, the script could not tell the two apart
  and would put cancelled tasks back into the queue. Preempted ones return by ``--requeue``.
"""

import shlex
from collections.abc import Sequence

from mqasearch.launch.fleet import Fleet

STOP_SECONDS = 120
"""Seconds before the end of its time at which a task is told to stop."""

SECRET = "$HOME/.config/mqasearch/storage.env"  # noqa: S105

NEXT_STEPS = (
    "database: write OPTUNA_STORAGE=postgresql://... into ~/.config/mqasearch/storage.env, and "
    "chmod 600 it",
    "submit: sbatch {path}",
)

_SCRIPT = r"""
set -euo pipefail

# The database's URL comes from the environment, or from a file that nobody else may read.
secret=${MQASEARCH_ENV_FILE:-@SECRET@}
if [[ -z ${OPTUNA_STORAGE:-} ]]; then
    if [[ ! -r $secret ]]; then
        echo "mqasearch: $secret cannot be read; write OPTUNA_STORAGE=postgresql://... into it" >&2
        exit 2
    fi
    if [[ -n $(find -L "$secret" -perm /077) ]]; then
        echo "mqasearch: others may read $secret; run: chmod 600 $secret" >&2
        exit 2
    fi
    OPTUNA_STORAGE=$(sed -n 's/^OPTUNA_STORAGE=//p' "$secret")
    export OPTUNA_STORAGE
fi
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

worker=
interrupted=no
requeue=no
# The time is nearly up: the worker gives its trial back, and the task will be run again.
trap 'interrupted=yes; requeue=yes; [[ -z $worker ]] || kill -TERM "$worker"' USR1
# Cancelled or preempted: Slurm has told the worker itself.
trap 'interrupted=yes' TERM

@WORKER@ &
worker=$!
while true; do
    code=0
    wait "$worker" || code=$?
    [[ $interrupted == yes ]] || break
    interrupted=no
done

# The database did not answer for a while: that may pass, but not for ever.
if [[ $code -eq 75 && ${SLURM_RESTART_COUNT:-0} -lt 10 ]]; then
    requeue=yes
fi
if [[ $requeue == yes && $code -ne 0 ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
"""


def script(fleet: Fleet, program: Sequence[str]) -> str:
    """A batch script of ``fleet.n_workers`` array tasks.

    Args:
        fleet: what to run.
        program: the words that start mqasearch on a node.
    """
    name = f"mqasearch-{fleet.study}"
    options = {
        "job-name": name,
        "array": f"0-{fleet.n_workers - 1}",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(fleet.cpus),
        "gres": f"gpu:{fleet.gpus}" if fleet.gpus else None,
        "mem": f"{fleet.memory}G" if fleet.memory else None,
        "time": None if fleet.seconds is None else _clock(fleet.seconds),
        "signal": f"B:USR1@{STOP_SECONDS}",
        "output": f"{name}_%A_%a.log",
        "open-mode": "append",
    }
    head = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None),
        "#SBATCH --requeue",
        "#",
        f"# {fleet.n_workers} worker(s) of {fleet.study}. What your cluster wants besides, sbatch "
        "takes on its",
        f"# command line: sbatch --partition=... --account=... {name}.sbatch",
    ]
    body = _SCRIPT.replace("@SECRET@", SECRET)
    return "\n".join(head) + body.replace("@WORKER@", shlex.join([*program, *fleet.arguments]))


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
