"""The memory that a container or a batch job leaves to this process (Linux control groups).

What the system calls available is the whole machine's; a process that takes more than its group
may have is killed.
"""

from pathlib import Path

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of the limit and of what is used, and in ``memory.stat`` what can be had back at once."""


def bytes_left_in_group(root: Path = Path("/")) -> int | None:
    """The least that this process's control group and those above it leave; None: no limit.

    Args:
        root: of the file system, elsewhere in tests.
    """
    groups = root / "sys/fs/cgroup"
    left = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            left += _walk(groups, path, _V2)
        elif "memory" in controllers.split(","):
            left += _walk(groups / "memory", path, _V1)
    return min(left, default=None)


def _walk(top: Path, path: str, files: tuple[str, str, str]) -> list[int]:
    """From a group up to the top; in a container the groups above it are not to be seen."""
    limit_file, usage_file, reclaimable = files
    place = top / path.strip("/")
    found = []
    for group in (place, *place.parents):
        limit, usage = _read(group / limit_file).strip(), _read(group / usage_file).strip()
        if limit.isdigit() and usage.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
            free = int(limit) - int(usage) + int(stat.get(reclaimable, 0))
            found.append(max(0, free))
        if group == top:
            break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
