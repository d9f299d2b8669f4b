"""What the loop needs of a mode, and where its tensors lie."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from train.loader import Batch

Figures = dict[str, float]


class Place(NamedTuple):
    """Where a module's weights lie, and in which format; batches are brought there."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def bring(self, found: Tensor | np.ndarray) -> Tensor:
        """A tensor or array on the device; numbers with a point in the module's format."""
        tensor = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking=True)


def wide(found: Tensor) -> Tensor:
    """float32 of what autocast has made smaller: losses are sums of many terms."""
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found


class Step(Protocol):
    """What the loop needs of a mode."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]: ...

    def extra(self) -> dict[str, Any]: ...
