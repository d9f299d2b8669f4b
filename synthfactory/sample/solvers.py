"""Solvers from noise (t = 1) to a latent (t = 0) along the linear path x_t = (1 - t) x_0 + t e.

As in SiT and REPA-E (arXiv 2401.08740, 2504.10483):
  ODE  dx = v dt, over linspace(1, 0, steps + 1): Euler, or Heun (its last step, to t = 0, is Euler: 2 steps - 1 evaluations).
  SDE  Euler-Maruyama over linspace(1, 0.04, steps), then one noise-free step to 0; diffusion w(t) = 2t, drift v - w s / 2.
Orders hold where guidance does not change: a step of Heun's across an end of the guidance interval inside (0, 1) mixes a guided and an
unguided slope, and is of first order (ab2 keeps its order at the upper end). Grid points and ends are compared as floats: an end that is
meant to lie on the grid, such as 0.3 of 10 steps, may fall to either side.
Beside these:
  ab2              the two-step Adams-Bashforth method for the ODE: second order at one evaluation a step, over linspace(1, 0, steps + 1)
                   (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, III.1; for diffusion: arXiv 2204.13902)
  stochastic_heun  Heun for the SDE, whose noise does not depend on the state: weak order two (Kloeden and Platen, Numerical Solution
                   of Stochastic Differential Equations, 15.1), over linspace(1, 0.04, steps), then the data prediction x - t v
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from synthfactory.model.interpolant import score_from_velocity
from synthfactory.plan.cost import LAST_SDE_TIME
from synthfactory.spec.sampler import Guidance, Sampler

Velocity = Callable[[Tensor, float], Tensor]


def integrate(sampler: Sampler, velocity: Velocity, start: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
    """The latent (B, C, H, W) that `start` (standard normal, same shape) flows to. `fresh_noise` is called by the SDE only."""
    if sampler.solver == "euler_maruyama":
        return _euler_maruyama(sampler.num_steps, velocity, start, fresh_noise)
    if sampler.solver == "stochastic_heun":
        return _stochastic_heun(sampler.num_steps, velocity, start, fresh_noise)
    if sampler.solver == "ab2":
        return _adams_bashforth(sampler, velocity, start)
    return _ode(sampler.num_steps, velocity, start, second_order=sampler.solver == "heun")


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


def _stochastic_heun(steps: int, velocity: Velocity, x: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
    times: list[float] = np.linspace(1.0, LAST_SDE_TIME, steps).tolist()
    for now, after in pairwise(times):
        step = after - now
        kick = math.sqrt(now**2 - after**2) * fresh_noise()  # variance: the integral of w = 2t over the step
        slope = _drift(velocity, x, now)
        ahead = _drift(velocity, x + step * slope + kick, after)
        x = x + 0.5 * step * (slope + ahead) + kick
    return x - times[-1] * velocity(x, times[-1])


def _adams_bashforth(sampler: Sampler, velocity: Velocity, x: Tensor) -> Tensor:
    """x' = x + (t' - t) (3 v - v_before) / 2; one Euler step where there is none before, or where guidance begins or ends."""
    last: tuple[Tensor, bool] | None = None
    for now, after in pairwise(np.linspace(1.0, 0.0, sampler.num_steps + 1).tolist()):
        slope, both = velocity(x, now), is_guided(sampler.guidance, now)
        jumps = last is None or last[1] != both
        x = x + (after - now) * (slope if jumps or last is None else torch.lerp(last[0], slope, 1.5))
        last = (slope, both)
    return x


def is_guided(guidance: Guidance, t: float) -> bool:
    """Whether time t needs a second, unconditional evaluation."""
    return guidance.scale != 1.0 and guidance.low <= t <= guidance.high


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """d = d_uncond + scale (d_cond - d_uncond) (classifier-free guidance, arXiv 2207.12598)."""
    return torch.lerp(unconditional, conditional, scale)
