"""Measurements of a device: time of work, memory that it holds, and memory bandwidth."""

import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MIN_BUFFER_BYTES, MAX_BUFFER_BYTES = 2**25, 2**29
"""Least and greatest working set of the bandwidth benchmark. For a smaller one the clock is too
coarse; a larger one is not needed, as no cache holds any of it."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_RESET_PEAK = "5"  # proc(5), clear_refs: sets the peak to the memory that is resident now


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """How long ``work`` takes on the device, in seconds.

    On CUDA, events on the device's stream measure it. On other devices the clock does, when no
    earlier work is pending.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            work()
            end.record()
            torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of a measurement, as ``timeit`` does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def peak_growth(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most memory that ``work`` held at a time, beyond what was held before, in bytes.

    On CUDA this is the memory of tensors, by torch's allocator. On a CPU it is the process's
    resident memory, whose peak the kernel records (Linux, ``VmHWM``). That is accurate to some MB,
    as it includes memory that other work of the process takes meanwhile. None if there is no such
    record.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    _give_back_freed_memory()
    if device.type != "cpu" or not _reset_peak():
        work()
        return None
    before = _kilobytes(_STATUS, "VmRSS")
    work()
    return max(_kilobytes(_STATUS, "VmHWM") - before, 0) * 1024


def available_bytes(device: torch.device) -> int | None:
    """Bytes of memory that are available on the device; None if that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and _MEMINFO.is_file():
        return _kilobytes(_MEMINFO, "MemAvailable") * 1024
    return None


def device_name(device: torch.device) -> str:
    """A GPU's name, or a CPU's architecture and vector extension."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return platform.machine()


def load_average() -> float | None:
    """Mean number of processes that wanted a CPU in the last minute.

    If it is above the number of cores, times are too long. None if the system does not count.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


class Bandwidth:
    """Memory bandwidth by the best of three kernels: copy, triad (STREAM, McCalpin 1995), read.

    ``read`` multiplies a matrix by a vector in the model's dtype, which is what decoding does with
    weights. The working set is as large as what decoding reads, within limits. So if a cache holds
    the model, it also holds the benchmark, and a bound that is based on it remains a bound.

    Each ``sample`` runs every kernel once. The fastest run counts, since the others were disturbed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, n_bytes: int) -> None:
        """Allocate the working set: ``n_bytes``, within MIN_BUFFER_BYTES and MAX_BUFFER_BYTES."""
        columns = 4096
        self.buffer_bytes = min(max(n_bytes, MIN_BUFFER_BYTES), MAX_BUFFER_BYTES)
        rows = self.buffer_bytes // (4 * columns * 6) * 6  # divisible by 2 and by 3
        buffer = torch.ones(rows, columns, device=device)
        half, third = rows // 2, rows // 3
        matrix = buffer.view(dtype)
        vector = torch.ones(matrix.shape[1], device=device, dtype=dtype)
        self._kernels: dict[str, tuple[Callable[[], object], int]] = {
            "copy": (lambda: buffer[:half].copy_(buffer[half:]), 2 * half * columns * 4),
            "triad": (
                lambda: torch.add(
                    buffer[:third],
                    buffer[third : 2 * third],
                    alpha=0.5,
                    out=buffer[2 * third :],
                ),
                3 * third * columns * 4,
            ),
            "read": (lambda: torch.mv(matrix, vector), rows * columns * 4),
        }
        self._device = device
        for kernel, _ in self._kernels.values():
            kernel()  # the first run is slower, as it allocates pages and loads kernels
        self.rates = dict.fromkeys(self._kernels, 0.0)

    def sample(self) -> None:
        """Run every kernel once more."""
        for name, (kernel, n_bytes) in self._kernels.items():
            rate = n_bytes / seconds(self._device, kernel)
            self.rates[name] = max(rate, self.rates[name])

    @property
    def kernel(self) -> str:
        """Name of the fastest kernel."""
        return max(self.rates, key=self.rates.__getitem__)

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the fastest kernel; 0 before the first sample."""
        return self.rates[self.kernel]


def _synchronize(device: torch.device) -> None:
    if device.type == "mps":
        torch.mps.synchronize()


def _give_back_freed_memory() -> None:
    """Make the C library return freed memory; reusing it would hide that much of the growth."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:  # not Linux, or forbidden
        return False
    return True


def _kilobytes(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"{path} has no {key}")
