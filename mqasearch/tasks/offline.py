"""lm-eval's tasks; their documents come from the offline assets if these hold them.

Prompts, metrics and versions are upstream's: the installed lm-eval's own YAML files are read, and a
subclass of its task class loads the dataset in another way. The arrow files are mapped into memory;
nothing is copied, and no hub is asked.

The assets hold the validation splits (all splits of MMLU). This is why two things differ from
lm-eval with a hub:

* ``arc_*``, ``openbookqa`` and ``sciq`` are scored on their validation split, not on test;
* examples in a prompt come from the calibration part of the validation split, which is never
  scored, not from the training split.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from mqasearch.assets import benchmark_data
from mqasearch.errors import AssetError, UserError
from mqasearch.tasks.compiled_templates import compile_templates_once
from mqasearch.tasks.documents import row_hashes, split_of
from mqasearch.tasks.offline_names import (
    UPSTREAM_FOLDERS,
    all_task_names,
    check_task_name,
    offline_task_names,
    tasks_folder,
)

__all__ = ["OfflineTask", "all_task_names", "check_task_name", "load_task", "offline_task_names"]

_DATA: Mapping[str, str] = {
    "Rowan/hellaswag": "hellaswag/none",
    "baber/piqa": "piqa/plain_text",
    "allenai/winogrande": "winogrande/{name}",
    "allenai/ai2_arc": "ai2_arc/{name}",
    "allenai/openbookqa": "openbookqa/{name}",
    "allenai/sciq": "sciq/none",
    "lighteval/siqa": "social_i_qa/none",
    "tau/commonsense_qa": "tau/commonsense_qa/none",
    "aps/super_glue": "super_glue/{name}",
    "cais/mmlu": "hails/mmlu_no_train/{name}",
}
"""``dataset_path`` of the upstream YAML → folder of the assets."""

_SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


def load_task(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    """lm-eval's task of that name, or all members of a group or tag.

    Args:
        name: name of an offline task, or of any other task of lm-eval, whose data a hub serves.
        num_fewshot: number of examples in the prompt.
        seed: seed of the choice of examples.

    Raises:
        UnknownNameError: lm-eval has no such task.
        AssetError: its data cannot be fetched.
        UserError: more examples are asked for than there are.
    """
    check_task_name(name)
    compile_templates_once()
    tasks = (
        _load_offline(name, num_fewshot) if name in offline_task_names() else _load_from_hub(name)
    )
    for task in tasks:
        if num_fewshot and task.get_config("num_fewshot") == 0:
            raise UserError(f"task {task.task_name} takes no examples: set num_fewshot to 0")
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return tasks


class OfflineTask(ConfigurableTask):  # type: ignore[misc]
    """An upstream task whose documents come from the assets.

    lm-eval uses it instead of its own class if an override has the key ``class``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        data = _data_folder(config["dataset_path"], config.get("dataset_name"))
        splits = {folder.name for folder in data.iterdir()}
        missing = {key: None for key in _SPLIT_KEYS if config.get(key) not in splits}
        plain = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**plain, **missing})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Map the arrow files of every split."""
        data = _data_folder(self.config.dataset_path, self.config.dataset_name)
        # If a file is mapped, datasets caches the results of process_docs beside it: HellaSwag
        # takes 0.1 s instead of 0.8 s. If the folder cannot be written, they stay in memory.
        in_memory = not os.access(data, os.W_OK)
        self.dataset = datasets.DatasetDict(
            {
                split.name: datasets.concatenate_datasets(
                    [
                        datasets.Dataset.from_file(str(file), in_memory=in_memory)
                        for file in sorted(split.glob("data-*.arrow"))
                    ]
                )
                for split in sorted(data.iterdir())
            }
        )

    def fewshot_docs(self) -> Any:
        """Candidates for the examples in a prompt; None if the prompt has no examples."""
        if not self.config.num_fewshot:
            return None
        if self.fewshot_cfg.split is not None:
            return super().fewshot_docs()
        documents = list(self.eval_docs)
        return [
            document
            for document, row in zip(documents, row_hashes(self, documents), strict=True)
            if split_of(row) == "calibration"
        ]


def _data_folder(dataset_path: str, dataset_name: str | None) -> Path:
    return benchmark_data() / _DATA[dataset_path].format(name=dataset_name)


def _load_offline(name: str, num_fewshot: int) -> list[Task]:
    manager = _offline_manager()
    override = {"class": OfflineTask, "num_fewshot": num_fewshot or None}
    members = [{"task": member, **override} for member in _members(name, manager)]
    with _quiet():
        loaded = manager.load({"group": "offline", "task": members})
        tasks = list(loaded["tasks"].values())
    for task in tasks:
        if num_fewshot and num_fewshot > (offered := _n_examples(task)):
            raise UserError(
                f"task {task.task_name} has {offered} documents to take examples from: "
                f"lower num_fewshot from {num_fewshot}"
            )
    return tasks


def _members(name: str, manager: TaskManager) -> list[str]:
    """The tasks that a name stands for; for a group, all tasks below it in lm-eval's order."""
    entry = manager.task_index[name]
    if name in manager.all_groups:
        return [task for member in entry.cfg["task"] for task in _members(member, manager)]
    return sorted(entry.tags) if name in manager.all_tags else [name]


def _n_examples(task: Task) -> int:
    # lm-eval draws one more example if the document itself might be drawn.
    spare = 1 if task.fewshot_cfg.split == task.config.test_split else 0
    return len(task.sampler.df) - spare


def _load_from_hub(name: str) -> list[Task]:
    try:
        with _quiet():
            return list(_hub_manager().load(name)["tasks"].values())
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"task {name} needs its dataset from the hub, and that failed: {reason}; "
            "'mqasearch tasks' lists the tasks that need no hub"
        ) from error


@cache
def _offline_manager() -> TaskManager:
    folders = [tasks_folder() / folder for folder in UPSTREAM_FOLDERS]
    return TaskManager(include_defaults=False, include_path=folders)


@cache
def _hub_manager() -> TaskManager:
    """All of lm-eval's tasks; reading their 14,000 YAML files takes about ten seconds."""
    return TaskManager()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars of datasets, and lm-eval's warnings of default metric directions."""
    logger = logging.getLogger("lm_eval.api.task")
    level = logger.level
    bars = not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
