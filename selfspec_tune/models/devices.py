"""Which device and which number format to run a model in."""

from __future__ import annotations

import torch

from selfspec_tune.cpu import chosen_level
from selfspec_tune.errors import NativeUnavailableError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEVICES = "expected auto, cpu, cuda or cuda:0, cuda:1, …"


def choose_device(device: str) -> torch.device:
    """``auto`` is the current GPU where there is one, else the CPU.

    Raises:
        UsageError: the name is no torch device, or that device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"Unknown device {device!r}: {_DEVICES}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"Device {device!r} is not there: torch sees {torch.cuda.device_count()} GPU(s). "
            "Use `device` auto, or install a torch build for this machine's GPU."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"Device {device!r} is not there: torch sees no GPU of Apple's. Use `device` auto.")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Device {device!r} is not supported: {_DEVICES}")
    return chosen


def choose_dtype(dtype: str, device: torch.device, own: torch.dtype | None = None) -> torch.dtype:
    """What to load a checkpoint in whose ``own`` type is given; None: it has none, as a quantised file.

    ``auto`` on a GPU is bfloat16 where it computes in it, else float16. On a CPU it is the
    checkpoint's own, since a step takes as long as reading the weights, whatever computes; without one
    it is bfloat16. float16, which no kernel here reads, becomes bfloat16 where the processor has
    products of it, else float32, which holds every float16 value.

    Raises:
        UsageError: the name is none of auto, float32, bfloat16, float16, or the device cannot compute in it.
    """
    if dtype == "auto":
        return _auto_dtype(device, own)
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    reason = _dtype_refusal(DTYPES[dtype], device)
    if reason is not None:
        fit = [name for name, other in DTYPES.items() if _dtype_refusal(other, device) is None]
        raise UsageError(f"`dtype` {dtype} does not work on {device}: {reason}. Use `dtype` {' or '.join(fit)}.")
    return DTYPES[dtype]


def _dtype_refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``device`` cannot multiply in ``dtype``, None where it can."""
    if (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return f"{torch.cuda.get_device_name(device)} does not compute in bfloat16 (compute capability 8.0 does)"
    try:
        _multiply(dtype, device)
    except (RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]
    return None


def _multiply(dtype: torch.dtype, device: torch.device) -> None:
    """What every linear layer does; raises where torch has no kernel for it."""
    weight = torch.ones(2, 2, dtype=dtype, device=device)
    torch.nn.functional.linear(weight, weight)


def _auto_dtype(device: torch.device, own: torch.dtype | None) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type != "cpu":
        return torch.float32
    if own is torch.float16:
        return torch.bfloat16 if cpu_computes_bfloat16() else torch.float32
    return torch.bfloat16 if own in (None, torch.bfloat16) else torch.float32


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU has products of bfloat16; without them torch imitates them, several times slower than float32.

    Raises `UsageError` where ``$SELFSPEC_TUNE_CPU_LEVEL`` names no level of this processor.
    """
    try:
        return chosen_level().has_bf16_dot
    except NativeUnavailableError:  # a processor that there are no kernels for
        return False
