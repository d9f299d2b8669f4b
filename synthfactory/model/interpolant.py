"""The linear path between a latent and noise, as in SiT and REPA-E (arXiv 2401.08740, 2504.10483).

x_t = (1 - t) x_0 + t e,  t in [0, 1], t = 1 is noise;  the network predicts the velocity v = dx_t/dt = e - x_0.
"""

from __future__ import annotations

from torch import Tensor


def _as_column(t_B: Tensor, like: Tensor) -> Tensor:
    return t_B.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def noised(x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """x_t for times t (B,) in [0, 1]; same shape and dtype as x0."""
    t = _as_column(t_B, x0_BCHW)
    return (1 - t) * x0_BCHW + t * noise_BCHW


def velocity_target(x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """What the network should predict: e - x_0."""
    return noise_BCHW - x0_BCHW


def score_from_velocity(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    """Score of p_t for the linear path: s = (-(1 - t) v - x) / t, for t > 0."""
    return (-(1.0 - t) * velocity - x) / t
