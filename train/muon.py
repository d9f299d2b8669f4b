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
TOGETHER = {"cpu": 8, "cuda": 64}  # matrices in one product


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
            if not learning:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(learning, group["lr"])
                continue
            of_age: dict[int, list[nn.Parameter]] = {}
            for weight in learning:
                of_age.setdefault(self._aged(weight), []).append(weight)
            for age, members in of_age.items():
                self._adam(members, age, group["lr"], group["betas"], group["eps"])

    def _muon(self, weights: Sequence[nn.Parameter], rate: float) -> None:
        for weight in weights:
            self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, _gradients(weights), 1 - MOMENTUM)
        ahead = torch._foreach_lerp(_gradients(weights), momenta, MOMENTUM)  # Nesterov
        alike: dict[Any, list[int]] = {}
        for number, weight in enumerate(weights):
            alike.setdefault((weight.shape, weight.device, weight.dtype), []).append(number)
        for (shape, *_), members in alike.items():  # some of one shape at a time: small products are slow one by one
            together = TOGETHER.get(weights[members[0]].device.type, 8)
            for start in range(0, len(members), together):
                some = members[start : start + together]
                found = orthogonalised(torch.stack([ahead[number] for number in some]), bfloat16=self.bfloat16)
                step = -rate * RMS * math.sqrt(max(shape))
                torch._foreach_add_([weights[number] for number in some], list(found.unbind()), alpha=step)

    def _aged(self, weight: nn.Parameter) -> int:
        """How many updates the weight has had, with this one."""
        state = self.state[weight]
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        return int(state["step"])

    def _adam(
        self, weights: Sequence[nn.Parameter], age: int, rate: float, betas: tuple[float, float], eps: float
    ) -> None:
        means, squares = ([self.state[weight][name] for weight in weights] for name in ("mean", "square"))
        gradients = _gradients(weights)
        torch._foreach_lerp_(means, gradients, 1 - betas[0])
        torch._foreach_mul_(squares, betas[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - betas[1] ** age))
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(list[Tensor](weights), means, roots, -rate / (1 - betas[0] ** age))


def _gradients(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
