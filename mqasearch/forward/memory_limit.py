"""The memory that a container or a batch job leaves to this process (Linux control groups).

The memory that the system calls available is the whole machine's, but a process that uses more than
its group may have is killed.
"""

from pathlib import Path

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Names of the files with the limit and the usage, and the key in ``memory.stat`` of the memory
that the system can reclaim at once."""


def bytes_left_in_group(root: Path = Path("/")) -> int | None:
    """The least number of bytes that this process's control group and those above it leave.

    None if there is no limit.

    Args:
        root: the file system's root; tests give another folder.
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
    """Bytes left in a group and in each group above it; a container sees none above its own."""
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
