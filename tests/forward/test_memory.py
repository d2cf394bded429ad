"""How much memory a scorer takes by default, and who else takes some."""

from pathlib import Path

import pytest
import torch

from mqasearch.forward import memory
from mqasearch.forward.memory_limit import bytes_left_in_group

CPU = torch.device("cpu")


def group(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_group_above_this_process_counts(tmp_path: Path) -> None:
    root = group(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": "1000\n",
            "sys/fs/cgroup/job/memory.current": "700\n",
            "sys/fs/cgroup/job/memory.stat": "anon 500\ninactive_file 50\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.current": "600\n",
        },
    )
    assert bytes_left_in_group(root) == 1000 - 700 + 50


def test_the_older_layout_is_known_too(tmp_path: Path) -> None:
    root = group(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/\n4:memory:/elsewhere\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200\n",
        },
    )
    assert bytes_left_in_group(root) == 0


@pytest.mark.parametrize("groups", ["", "0::/\n", "1:name=systemd:/x\n"])
def test_no_limit_is_none(tmp_path: Path, groups: str) -> None:
    assert bytes_left_in_group(group(tmp_path, {"proc/self/cgroup": groups})) is None


def test_a_limit_of_the_group_is_a_limit_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_bytes(CPU)
    monkeypatch.setattr(memory, "bytes_left_in_group", lambda: 6_000)
    assert memory.free_bytes(CPU) == 6_000 < free
    assert memory.default_state_budget(CPU) == int(memory.STATE_SHARE * 6_000)


def test_workers_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "bytes_left_in_group", lambda: 60_000)
    alone = memory.default_state_budget(CPU)
    monkeypatch.setenv(memory.SHARERS_VARIABLE, "4")
    assert memory.default_state_budget(CPU) == alone // 4


@pytest.mark.parametrize("free", [2**28, 2**33, 2**37])
def test_logits_on_a_gpu_take_a_share_of_what_is_free_and_no_more_than_keeps_it_busy(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    taken = memory.default_logits_bytes(torch.device("cuda"))
    assert memory.default_logits_bytes(CPU) <= taken <= 2**30
    assert taken <= max(free / 20, memory.default_logits_bytes(CPU))
