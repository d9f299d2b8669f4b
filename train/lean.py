"""bfloat16 copies of the weights of linear layers that learn, for products to read: what moves the weights casts them once an update, in
place of autocast once a step, and gradients stay in bfloat16 until the optimiser reads them. The weights themselves stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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

    def __getstate__(self) -> dict[str, Any]:
        """Of what a duplicate of the layer gets, which does not learn: sheets are drawn by one."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in ("weight_copy", "bias_copy")}


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
    """Of a lean run, where there can be some."""
    return Copies(module) if config.lean and workers == 1 and why_no_copies(config) is None else None


def why_no_copies(config: TrainConfig) -> str | None:
    """What of a config leaves a lean run without copies of its weights; None: nothing. The one pass over the weights of a compiled run
    casts them, and what several parts of a batch add up would be rounded.
    """
    if not one_update(config):
        return "optimiser.kind: muon" if config.optimiser.kind == "muon" else f"mode: {config.mode}"
    if config.finetune.lora is not None:
        return "finetune.lora"
    if config.optimiser.accumulate > 1:
        return "optimiser.accumulate"
    return None if config.compile else "compile: false"


def one_update(config: TrainConfig) -> bool:
    """Whether a step is one update by AdamW, in which the same weights always have gradients."""
    return config.optimiser.kind == "adamw" and config.mode in ("diffusion", "finetune")
