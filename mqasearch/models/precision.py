"""The device that a model is loaded on, and its dtype."""

import torch

from mqasearch.errors import ModelError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Names of dtypes, besides ``auto``."""

_DEVICES = "auto, cpu, cuda, cuda:N, mps"


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA if there is any, else MPS, else the CPU.

    Raises:
        ModelError: no device of that name is known, or it is absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ModelError(f"unknown device {name!r}: known: {_DEVICES}")
    if kind == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= n_devices:
            raise ModelError(
                f"device {name!r} is absent: torch {torch.__version__} sees {n_devices} CUDA "
                "devices; use --device auto"
            )
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device 'mps' is absent on this machine: use --device auto")
    return torch.device(kind)


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 if ``device`` computes in it, else float32.

    Raises:
        ModelError: no dtype of that name is known.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    try:
        return DTYPES[name]
    except KeyError:
        raise ModelError(f"unknown dtype {name!r}: known: auto, {', '.join(DTYPES)}") from None


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices by itself.

    GPUs do on CUDA since Ampere, and x86 CPUs do with AVX512-BF16 or AMX. Emulation, which is
    slower than float32, does not count.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_tile"))
    return False
