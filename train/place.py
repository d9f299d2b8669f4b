"""What the loop needs of a mode, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from synthfactory.model.weights import LoadedModel
from train.loader import Batch

# What a loss finds beside itself: numbers, or tensors of one. To read those is to wait for the device.
Figures = Mapping[str, float | Tensor]


class Place(NamedTuple):
    """Where a module's weights lie, and in which format; batches are brought there."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def bring(self, found: Tensor | np.ndarray) -> Tensor:
        """A tensor or array on the device; numbers with a point in the module's format."""
        tensor = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking=True)


class Rows:
    """Rows of a kept array, on the device. All of it lies there where it takes a twelfth of what is free at most (latents, class tokens
    and patch tokens a quarter together); then no step waits.
    """

    def __init__(self, array: np.ndarray, place: Place) -> None:
        self.array, self._place = array, place
        self._whole: Tensor | None = None
        if place.device.type == "cuda" and array.nbytes * 12 <= torch.cuda.mem_get_info(place.device)[0]:
            there = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, device=place.device)
            for start in range(0, len(array), 4096):
                there[start : start + 4096] = torch.from_numpy(array[start : start + 4096].copy())
            self._whole = there

    @property
    def at_hand(self) -> bool:
        """Whether nothing is read from the disk any more."""
        return self._whole is not None

    def of(self, *numbers: np.ndarray | Tensor) -> Tensor:
        """`array[numbers]`, int64 (B,) each, in the module's format."""
        if self._whole is None:
            return self._place.bring(np.asarray(self.array[numbers]))
        return self._place.bring(self._whole[tuple(self._place.bring(each) for each in numbers)])


def wide(found: Tensor) -> Tensor:
    """float32 of what autocast has made smaller: losses are sums of many terms."""
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found


Loss = Callable[[Batch], tuple[Tensor, Figures]]


class Phase(NamedTuple):
    """One update of a step: the weights that move, and the loss that moves them."""

    name: str
    weights: list[nn.Parameter]
    loss: Loss
    opposes: bool = False  # a discriminator's: its loss jumps by nature, and says nothing of how good the model is


class Step(Protocol):
    """What the loop needs of a mode: the module that is kept and averaged, and the updates of a step in order."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def phases(self) -> list[Phase]: ...

    # Whether the loss needs nothing of a batch but its positions, rows and symmetries, as tensors of the device.
    by_number: bool

    def extra(self) -> dict[str, Any]: ...

    def drawing(self, state: dict[str, Tensor]) -> LoadedModel | None:
        """A model of its own that draws with the weights `state` of the module; None for modes that draw nothing."""


def single(module: nn.Module, loss: Loss) -> list[Phase]:
    """The one update of a mode that has only one: of every weight that is to learn."""
    return [Phase("", [weight for weight in module.parameters() if weight.requires_grad], loss)]


def read(figures: Figures) -> dict[str, float]:
    """The numbers, of a device all at once."""
    there = {name: value for name, value in figures.items() if isinstance(value, Tensor)}
    found = torch.stack([value.double() for value in there.values()]).tolist() if there else []
    return {name: float(value) for name, value in {**figures, **dict(zip(there, found, strict=True))}.items()}
