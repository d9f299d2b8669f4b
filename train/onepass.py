"""Clipping, AdamW and the averages in one pass over the weights: these are bound by memory, and apart they pass over it more often.

State and numbers are torch.optim.AdamW's (its checkpoints fit, either way), the averages `train.ema.Ema`'s, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.config import TrainConfig
from train.ema import Ema
from train.lean import Copies, leaves, one_update

EPS = 1e-8


class _Member(NamedTuple):
    """What is kept of one weight, each as one row of numbers."""

    leaf: Tensor  # its gradient lies there
    weight: Tensor
    mean: Tensor
    square: Tensor
    averages: list[Tensor]
    copy: Tensor | None


def _move(
    gradient: Tensor,
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    averages: list[Tensor],
    copy: Tensor | None,
    numbers: Tensor,
    share: Tensor,
) -> None:
    """One weight's update, in place. `numbers`: what is kept of a weight; of mean and square what comes anew; their corrections; the
    step; then what each average takes. `share`: of the gradient, after clipping.
    """
    kept, new_mean, new_square, root, step = numbers[:5].unbind()
    gradient = gradient.to(weight.dtype) * share
    moved_mean = mean + new_mean * (gradient - mean)
    moved_square = square + new_square * (gradient * gradient - square)
    moved = weight * kept - step * moved_mean / (moved_square.sqrt() * root + EPS)
    mean.copy_(moved_mean)
    square.copy_(moved_square)
    weight.copy_(moved)
    for average, takes in zip(averages, numbers[5:].unbind(), strict=True):
        average.copy_(average + takes * (moved - average))
    if copy is not None:
        copy.copy_(moved)


class OnePass:
    """Moves the weights of `optimiser` by the gradients that lie with them or their copies, and the averages after them.

    Every step must find gradients with the same weights: the others never move, nor do their averages.
    """

    def __init__(
        self,
        optimiser: torch.optim.AdamW,
        module: nn.Module,
        averages: Sequence[Ema],
        clip: float,
        copies: Copies | None,
    ) -> None:
        self._optimiser, self._averages, self._clip = optimiser, averages, clip
        self._weights: list[nn.Parameter] = [weight for group in optimiser.param_groups for weight in group["params"]]
        self._names = {id(weight): name for name, weight in module.named_parameters()}
        self._leaves = leaves(self._weights, copies)
        self._move: Callable[..., None] = torch.compile(_move, dynamic=True)
        self._members: list[_Member] = []
        self._ages: list[Tensor] = []
        device, dtype = self._weights[0].device, self._weights[0].dtype
        self._numbers = torch.zeros(5 + len(averages), device=device, dtype=dtype)
        self._age: int | None = None

    def ready(self, step: int) -> None:
        """Before an update: brings the numbers of this 0-based step of the run to the device."""
        if self._age is None:
            states = self._optimiser.state.values()
            self._age = max((int(state["step"]) for state in states), default=0)
        self._age += 1
        (group,) = self._optimiser.param_groups
        rate, (first, second) = group["lr"], group["betas"]
        numbers = [
            1 - rate * group["weight_decay"],
            1 - first,
            1 - second,
            1 / math.sqrt(1 - second**self._age),
            rate / (1 - first**self._age),
            *(1 - average.decay_at(step) for average in self._averages),
        ]
        given = torch.tensor(numbers, dtype=self._numbers.dtype)
        self._numbers.copy_(given.pin_memory() if self._numbers.is_cuda else given, non_blocking=True)

    @torch.no_grad()
    def move(self) -> Tensor:
        """The update; returns the gradient's norm before clipping."""
        if not self._members:
            self._gather()
        gradients = [_row(member.leaf.grad.contiguous()) for member in self._members if member.leaf.grad is not None]
        alike: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:  # those of one format in one call: torch takes a mixture one by one
            alike.setdefault(gradient.dtype, []).append(gradient)
        norms = [each for some in alike.values() for each in torch._foreach_norm(some, 2, dtype=self._numbers.dtype)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        share = (self._clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient, (_, *kept) in zip(gradients, self._members, strict=True):
            self._move(gradient, *kept, self._numbers, share)
        torch._foreach_add_(self._ages, 1)
        return norm

    def _gather(self) -> None:
        """Everything as rows of numbers, so that one compilation serves all that is alike in format."""
        for weight, leaf in zip(self._weights, self._leaves, strict=True):
            if leaf.grad is None:
                continue
            state, name = self._optimiser.state[weight], self._names[id(weight)]
            if not state:
                # torch keeps the age of a weight on the device where AdamW is fused
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            rows = _row(weight), _row(state["exp_avg"]), _row(state["exp_avg_sq"])
            averages = [_row(average.state[name]) for average in self._averages]
            self._members.append(_Member(leaf, *rows, averages, None if leaf is weight else _row(leaf)))
            self._ages.append(state["step"])


def _row(tensor: Tensor) -> Tensor:
    """All numbers in one row, of the same memory. Detached anew: torch's compiler would look at the shape of what a view is of."""
    return tensor.detach().view(-1).detach()


def one_pass_of(
    config: TrainConfig,
    optimisers: Mapping[str, torch.optim.Optimizer],
    module: nn.Module,
    averages: Sequence[Ema],
    copies: Copies | None,
) -> OnePass | None:
    """Of compiled runs: what is not compiled would pass once for every operation."""
    if not (one_update(config) and config.compile):
        return None
    (optimiser,) = optimisers.values()
    assert isinstance(optimiser, torch.optim.AdamW)
    return OnePass(optimiser, module, averages, config.optimiser.clip, copies)
