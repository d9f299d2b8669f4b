"""Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for everything else, as one optimiser.

Muon turns the momentum of a matrix into the nearest (semi-)orthogonal one by five Newton-Schulz steps, scaled so that its entries are as
large as AdamW's (0.2 sqrt(max side), arXiv 2502.16982): one learning rate serves both. torch.optim.Muon computes these steps in bfloat16
always, which takes ten times as long on CPUs without bfloat16 units; here they are float32 but on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM, RMS = 0.95, 0.2


def orthogonalised(matrix_RC: Tensor) -> Tensor:
    """Singular values brought to about 1 (0.7 to 1.2; those below a hundredth of the matrix's norm rise, and stay below), singular vectors
    kept; the shape and format of `matrix`, which may be zero.
    """
    a, b, c = COEFFICIENTS
    x = matrix_RC.bfloat16() if matrix_RC.is_cuda else matrix_RC
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix_RC.dtype)


def is_hidden(name: str, weight: Tensor) -> bool:
    """Whether Muon takes it: a matrix inside a block. Embeddings, outputs, biases, norms and kernels are AdamW's."""
    return weight.ndim == 2 and ".blocks." in f".{name}" and min(weight.shape) > 1


class Muon(optim.Optimizer):
    """Takes named weights, and tells by name and shape whose they are."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
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
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon(weight) if group["muon"] else self._adam(weight, group["betas"], group["eps"])
                weight.add_(update, alpha=-group["lr"])

    def _muon(self, weight: nn.Parameter) -> Tensor:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        found = orthogonalised(gradient.lerp(momentum, MOMENTUM))  # Nesterov's look ahead
        return found * (RMS * math.sqrt(max(weight.shape)))

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
