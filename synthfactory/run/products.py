"""The fastest product of blocks that this machine has for shortlists of neighbours: bfloat16 where there are units for it."""

from __future__ import annotations

import numpy as np
import torch

from synthfactory.evaluate.neighbours import FLOAT32, Product

BFLOAT16 = 2.0**-8  # half a unit in the last place is 2^-9; twice that, so that no rounding mode matters
SPARE = 24  # coarse keys need longer shortlists


def fastest_product() -> Product:
    """bfloat16 on a GPU or a CPU with AMX; else numpy's float32."""
    if torch.cuda.is_available():
        return bfloat16_product(torch.device("cuda"))
    return bfloat16_product(torch.device("cpu")) if _has_amx() else FLOAT32


def _has_amx() -> bool:
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())


def bfloat16_product(device: torch.device) -> Product:
    """On this device."""

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        one, other = (torch.from_numpy(np.ascontiguousarray(part)).to(device).bfloat16() for part in (a, b))
        return np.asarray((one @ other.T).float().cpu().numpy())

    return Product(multiply, BFLOAT16, SPARE)
