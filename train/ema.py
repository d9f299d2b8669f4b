"""Exponential moving average of weights: averaged <- d averaged + (1 - d) current, with a decay that warms up.

Statistics of BatchNorm are averaged as weights are (as REPA-E does); counters are copied.

The decay of step s is min(d, (1 + s) / (10 + s)), so that a short run is not dominated by its first weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """Averaged weights and statistics of a module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """Of optimiser step `step` (0-based)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's weights after optimiser step `step` (0-based)."""
        decay = self.decay_at(step)
        now = module.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        # All at once: one by one, a GPU waits for the next to be named.
        torch._foreach_lerp_([self.state[name] for name in moving], [now[name] for name in moving], 1 - decay)
        for name in now.keys() - set(moving):
            self.state[name].copy_(now[name])

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module holds the averaged weights inside, and its own again afterwards."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.state)
        try:
            yield
        finally:
            module.load_state_dict(own)
