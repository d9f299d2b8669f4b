"""Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for everything else, as one optimiser.

Muon turns the momentum of a matrix into the nearest (semi-)orthogonal one by five Newton-Schulz steps, scaled so that its entries are as
large as AdamW's (0.2 sqrt(max side), arXiv 2502.16982): one learning rate serves both. torch.optim.Muon computes these steps in bfloat16
always, which takes ten times as long on CPUs without bfloat16 units; here they are bfloat16 on CUDA and where a run says bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM, RMS = 0.95, 0.2
TOGETHER = 8  # matrices in one product


def orthogonalised(matrices_KRC: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Singular values of each matrix brought to about 1 (0.7 to 1.2; those below a hundredth of the matrix's norm rise, and stay below),
    singular vectors kept; the shape and format of `matrices` (K, R, C), which may be zero.
    """
    a, b, c = COEFFICIENTS
    x = matrices_KRC.bfloat16() if bfloat16 or matrices_KRC.is_cuda else matrices_KRC
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_KRC.dtype)


def is_hidden(name: str, weight: Tensor) -> bool:
    """Whether Muon takes it: a matrix inside a block. Embeddings, outputs, biases, norms and kernels are AdamW's."""
    return weight.ndim == 2 and ".blocks." in f".{name}" and min(weight.shape) > 1


class Muon(optim.Optimizer):
    """Takes named weights, and tells by name and shape whose they are. `bfloat16`: Newton-Schulz in that format on any device."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.bfloat16 = bfloat16
        hidden: list[nn.Parameter] = []
        other: list[nn.Parameter] = []
        for name, weight in named:
            (hidden if is_hidden(name, weight) else other).append(weight)
        groups = [{"params": weights, "muon": muon} for muon, weights in ((True, hidden), (False, other)) if weights]
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            learning = [weight for weight in group["params"] if weight.grad is not None]
            for weight in learning:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(learning, group["lr"])
                continue
            for weight in learning:
                weight.add_(self._adam(weight, group["betas"], group["eps"]), alpha=-group["lr"])

    def _muon(self, weights: Sequence[nn.Parameter], rate: float) -> None:
        alike: dict[Any, list[nn.Parameter]] = {}
        for weight in weights:
            alike.setdefault((weight.shape, weight.device, weight.dtype), []).append(weight)
        for (shape, *_), members in alike.items():  # some of one shape at a time: small products are slow one by one
            for start in range(0, len(members), TOGETHER):
                some = members[start : start + TOGETHER]
                found = orthogonalised(torch.stack([self._ahead(weight) for weight in some]), bfloat16=self.bfloat16)
                for weight, update in zip(some, found, strict=True):
                    weight.add_(update, alpha=-rate * RMS * math.sqrt(max(shape)))

    def _ahead(self, weight: nn.Parameter) -> Tensor:
        """The momentum with Nesterov's look ahead."""
        gradient = weight.grad
        assert gradient is not None
        momentum: Tensor = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)

    def _adam(self, weight: nn.Parameter, betas: tuple[float, float], eps: float) -> Tensor:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - betas[0])
        state["square"].lerp_(gradient.square(), 1 - betas[1])
        mean = state["mean"] / (1 - betas[0] ** state["step"])
        square = state["square"] / (1 - betas[1] ** state["step"])
        found: Tensor = mean / (square.sqrt() + eps)
        return found
