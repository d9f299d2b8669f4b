"""Solvers from noise (t = 1) to a latent (t = 0) along the linear path x_t = (1 - t) x_0 + t e.

As in SiT and REPA-E (arXiv 2401.08740, 2504.10483):
  ODE  dx = v dt, over linspace(1, 0, steps + 1): Euler, or Heun (its last step, to t = 0, is Euler: 2 steps - 1 evaluations).
  SDE  Euler-Maruyama over linspace(1, 0.04, steps), then one noise-free step to 0; diffusion w(t) = 2t, drift v - w s / 2.
One evaluation a step, second order, over linspace(1, 0, steps + 1), in the data prediction D = x - t v:
  dpmpp_2m      DPM-Solver++(2M) for the ODE (arXiv 2211.01095, algorithm 2)
  dpmpp_2m_sde  SDE-DPM-Solver++(2M) for the reverse SDE (same paper, appendix)
"""

from __future__ import annotations

import math
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
    if sampler.solver in ("dpmpp_2m", "dpmpp_2m_sde"):
        return _multistep(sampler, velocity, start, fresh_noise if sampler.method == "sde" else None)
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


def _multistep(sampler: Sampler, velocity: Velocity, x: Tensor, fresh_noise: Callable[[], Tensor] | None) -> Tensor:
    """Two-step solvers in the data prediction; with `fresh_noise` the stochastic one.

    With h the step in log-SNR, log((1 - t) / t), and g = 1 for the ODE, 2 for the SDE:
      x' = (t'/t) e^{-(g-1)h} x + (1 - t') (1 - e^{-gh}) D + t' sqrt(1 - e^{-2h}) z (SDE only),
    D extrapolated from this and the last prediction to the middle of the step. Near t = 1 and at t = 0, where h has no bound, and
    where guidance begins or ends, D is this prediction alone.
    """
    times = np.linspace(1.0, 0.0, sampler.steps + 1)
    last: tuple[Tensor, float, bool] | None = None  # data prediction, its step in log-SNR, whether guided
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        data = x - now * velocity(x, now)
        both = is_guided(sampler.guidance, now)
        step = _log_snr(after) - _log_snr(now)
        middle = data
        if last is not None and math.isfinite(step) and math.isfinite(last[1]) and last[2] == both:
            middle = torch.lerp(last[0], data, 1.0 + 0.5 * step / last[1])
        shrink = math.exp(-step)
        if fresh_noise is None:
            x = after / now * x + (1.0 - after) * (1.0 - shrink) * middle
        else:
            x = after / now * shrink * x + (1.0 - after) * (1.0 - shrink**2) * middle
            if after > 0:
                x = x + after * math.sqrt(1.0 - shrink**2) * fresh_noise()
        last = (data, step, both)
    return x


def _log_snr(t: float) -> float:
    if t <= 0.0:
        return math.inf
    return -math.inf if t >= 1.0 else math.log((1.0 - t) / t)


def is_guided(guidance: Guidance, t: float) -> bool:
    """Whether time t needs a second, unconditional evaluation."""
    return guidance.scale != 1.0 and guidance.low <= t <= guidance.high


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """d = d_uncond + scale (d_cond - d_uncond) (classifier-free guidance, arXiv 2207.12598)."""
    return torch.lerp(unconditional, conditional, scale)
