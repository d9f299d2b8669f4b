"""bfloat16 copies of the matrices that learn, for products to read: they are cast once an update, by what moves them, in place of once a
step, and gradients stay in bfloat16 until the optimiser reads them. The weights themselves stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import TrainConfig


class _Lean(nn.Linear):
    """A linear layer that multiplies by its copies while it learns, and by its weights otherwise."""

    weight_copy: Tensor
    bias_copy: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_copy, self.bias_copy) if self.training else super().forward(x)


class Copies:
    """Of the weights of `module`'s linear layers that learn: gradients are left with the copies, none with these weights."""

    def __init__(self, module: nn.Module) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for layer in module.modules():
            if type(layer) is not nn.Linear or not all(weight.requires_grad for weight in layer.parameters()):
                continue
            layer.__class__ = _Lean  # names of weights, and what refers to the layer, stay what they are
            layer.weight_copy = self._copy(layer.weight)
            layer.bias_copy = None if layer.bias is None else self._copy(layer.bias)
        self._of = {id(weight): copy for weight, copy in self._pairs}

    def _copy(self, weight: Tensor) -> Tensor:
        copy = weight.detach().bfloat16().requires_grad_()
        self._pairs.append((weight, copy))
        return copy

    def of(self, weight: nn.Parameter) -> Tensor | None:
        """The copy of a weight, if it has one."""
        return self._of.get(id(weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """From weights that were loaded."""
        for weight, copy in self._pairs:
            copy.copy_(weight)


def leaves(weights: Iterable[nn.Parameter], copies: Copies | None) -> list[Tensor]:
    """What each weight's gradient is left with: its copy, or itself."""
    found = ((weight, copies.of(weight) if copies else None) for weight in weights)
    return [weight if copy is None else copy for weight, copy in found]


def copies_of(config: TrainConfig, module: nn.Module, workers: int) -> Copies | None:
    """As the config says, where they can be: alone and of whole batches, since what several add up would be rounded; and where one
    pass over the weights casts them.
    """
    alone = workers == config.optimiser.accumulate == 1
    return Copies(module) if config.lean and alone and one_update(config) else None


def one_update(config: TrainConfig) -> bool:
    """Whether a step is one update by AdamW, in which the same weights always have gradients."""
    return config.optimiser.kind == "adamw" and config.mode in ("diffusion", "finetune")
