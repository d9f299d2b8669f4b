"""What decides the last bits of pixels on a machine: goes into every commit, so that mixed builds can be seen (no host name)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import PIL
import torch
from PIL import features

from synthfactory.sample.official import AnyEngine


def fingerprint(engine: AnyEngine, batch_size: int) -> dict[str, Any]:
    """Device class, versions, number format, batch, threads, attention kernel and image codecs."""
    cuda = engine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "zlib": str(features.version("zlib")),
        "webp": str(features.version("webp")),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "threads": 0 if cuda else torch.get_num_threads(),
        "attention": "sdpa",
        "compiled": engine.compiled,
        **engine.software,
    }


def compiles(execution: Mapping[str, Any]) -> bool:
    """Whether workers compile the network: as the lock says; by default on CUDA only, and not where strict."""
    if execution["compile"] is not None:
        return bool(execution["compile"])
    return torch.cuda.is_available() and not execution["strict"]
