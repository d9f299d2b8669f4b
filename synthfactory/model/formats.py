"""Number formats that a device has no units for."""

from __future__ import annotations

import torch


def slow_format(dtype: str, device: torch.device) -> str | None:
    """What to say where this format is emulated on the device, else None. On CPUs: bfloat16 and float16 without AVX512.

    Measured on an AVX2 CPU: a training step of the built-in SiT alone takes 13.5 s in bfloat16 and 0.9 s in float32.
    """
    if device.type != "cpu" or dtype not in ("bfloat16", "float16"):
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("DEFAULT", "NO AVX", "AVX", "AVX2"):
        return None
    return f"this CPU ({capability}) only emulates {dtype}, many times slower than float32"
