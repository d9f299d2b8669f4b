"""How many tiles fit a batch? Measured once, on the kind of device that will draw, and fixed in the lock of a first build.

By memory alone, never by the clock: the batch decides the last bits of pixels, and the same GPU must give the same answer tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from synthfactory.model.folder import ModelFolder
from synthfactory.model.weights import LoadedModel, default_device, load_model
from synthfactory.plan.lock import DEFAULT_BATCH
from synthfactory.run.models import choose_model
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Guidance, Sampler
from synthfactory.spec.schema import Spec

SIZES = (8, 16, 32, 64, 128)
SHARE = 0.6  # of the device's memory: graphs and fragments of it come on top


def largest_batch(peak_bytes: Callable[[int], int], limit_bytes: int) -> int:
    """The largest of SIZES whose peak stays within the limit (the smallest, where none does)."""
    best = SIZES[0]
    for rows in SIZES:
        try:
            if peak_bytes(rows) > limit_bytes:
                break
        except torch.OutOfMemoryError:
            break
        best = rows
    return best


def probe_batch(spec: Spec) -> int:
    """Tiles in a batch for the spec's model on this process's device: measured on a GPU, the default of 16 on a CPU."""
    chosen = choose_model(spec)
    device = default_device()
    # What a repository's own pipeline needs is its own affair.
    if device.type != "cuda" or not isinstance(chosen.model, ModelFolder):
        return DEFAULT_BATCH
    found = _measured(load_model(chosen.model, chosen.encoder), spec, device)
    torch.cuda.empty_cache()
    return found


def _measured(model: LoadedModel, spec: Spec, device: torch.device) -> int:
    engine = Engine(model, dtype=spec.execution.dtype)
    step = Sampler(solver="euler", steps=1, guidance=Guidance(scale=2.0))
    embed = spec.screen.embeds

    def peak(rows: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        conditions = np.zeros((rows, model.sit.config.condition_width), np.float32)
        engine.begin(conditions, [(row, 0) for row in range(rows)], step, embed=embed).wait()
        return int(torch.cuda.max_memory_allocated(device))

    return largest_batch(peak, int(SHARE * torch.cuda.get_device_properties(device).total_memory))
