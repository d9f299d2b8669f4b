"""Solvers from noise (t = 1) to a latent (t = 0) along the linear path, as in SiT and REPA-E.

ODE  dx = v dt, over linspace(1, 0, steps + 1): Euler, or Heun (its last step, to t = 0, is Euler: 2 steps - 1 evaluations).
SDE  Euler-Maruyama over linspace(1, 0.04, steps), then one noise-free step to 0; diffusion w(t) = 2t, drift v - w s / 2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from synthfactory.model.interpolant import score_from_velocity
from synthfactory.plan.cost import LAST_SDE_TIME
from synthfactory.spec.sampler import Guidance, Sampler

Velocity = Callable[[Tensor, float], Tensor]


def integrate(sampler: Sampler, velocity: Velocity, start: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
    """The latent (B, C, H, W) that `start` (standard normal, same shape) flows to. `fresh_noise` is called by the SDE only."""
    if sampler.method == "sde":
        return _euler_maruyama(sampler.steps, velocity, start, fresh_noise)
    return _ode(sampler.steps, velocity, start, second_order=sampler.solver == "heun")


def _ode(steps: int, velocity: Velocity, x: Tensor, *, second_order: bool) -> Tensor:
    times = np.linspace(1.0, 0.0, steps + 1)
    for now, after in zip(times[:-1], times[1:], strict=True):
        slope = velocity(x, float(now))
        ahead = x + float(after - now) * slope
        if second_order and after > 0:
            ahead = x + float(after - now) * 0.5 * (slope + velocity(ahead, float(after)))
        x = ahead
    return x


def _drift(velocity: Velocity, x: Tensor, t: float) -> Tensor:
    v = velocity(x, t)
    return v - 0.5 * (2.0 * t) * score_from_velocity(v, x, t)


def _euler_maruyama(steps: int, velocity: Velocity, x: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
    times = np.linspace(1.0, LAST_SDE_TIME, steps)
    for now, after in zip(times[:-1], times[1:], strict=True):
        step = float(after - now)
        x = x + step * _drift(velocity, x, float(now)) + (2.0 * float(now) * abs(step)) ** 0.5 * fresh_noise()
    last = float(times[-1])
    return x - last * _drift(velocity, x, last)


def is_guided(guidance: Guidance, t: float) -> bool:
    """Whether time t needs a second, unconditional evaluation."""
    return guidance.scale != 1.0 and guidance.low <= t <= guidance.high


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """d = d_uncond + scale (d_cond - d_uncond) (classifier-free guidance, arXiv 2207.12598)."""
    return torch.lerp(unconditional, conditional, scale)
