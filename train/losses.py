"""Losses as functions of tensors: reconstruction, KL, alignment (networks live in synthfactory.model)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.objectives import DiffusionLosses
from train.place import Place
from train.streams import normal, uniform

PATCH_PX, DIRECTIONS = (3, 9), 32
PATCHES = 56  # of each scale, about so many along a side are looked at
FLAT = 0.05  # of [-1, 1], added to the deviation that differences are measured in: what is flat, or grain alone, must not weigh most


def _gradients(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_BCHW[..., :, 1:] - x_BCHW[..., :, :-1], x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]


def gradient_l1(found_BCHW: Tensor, wanted_BCHW: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical differences, at full and at half resolution."""
    total = found_BCHW.new_zeros(())
    for scale in (1, 2):
        a = found_BCHW if scale == 1 else F.avg_pool2d(found_BCHW, scale)
        b = wanted_BCHW if scale == 1 else F.avg_pool2d(wanted_BCHW, scale)
        for ga, gb in zip(_gradients(a), _gradients(b), strict=True):
            total = total + (ga - gb).abs().mean() / 4
    return total


def patches_apart(
    found_BCHW: Tensor, wanted_BCHW: Tensor, random: np.random.Generator, scales: Sequence[int] = (1, 2, 4)
) -> Tensor:
    """Sliced Wasserstein distance of the patches of each tile (arXiv 2203.11862), in deviations of the wanted ones: 0 where the same
    patches stand in it, wherever they stand.

    Patches of 3 to 9 px (but no larger than half a tile) of the means of squares that `scales` names the sides of, along random directions
    without brightness; as many of each scale. A tile holds seven of the largest squares along a side, or more.
    """
    total = found_BCHW.new_zeros(())
    channels, side = found_BCHW.shape[1], min(found_BCHW.shape[2:])
    for scale in scales:
        size = int(random.integers(PATCH_PX[0], min(PATCH_PX[1], side // scale // 2) + 1))
        directions = torch.from_numpy(random.standard_normal((DIRECTIONS, channels, size, size), dtype=np.float32))
        directions = directions - directions.mean((2, 3), keepdim=True)
        directions = (directions / directions.flatten(1).norm(dim=1)[:, None, None, None]).to(wanted_BCHW)
        stride = max(1, side // scale // PATCHES)
        first = int(random.integers(0, scale * stride))  # no grid that the decoder could learn
        along = []
        for image in (found_BCHW, wanted_BCHW):
            means = F.avg_pool2d(image[..., first:, first:], scale)
            along.append(F.conv2d(means, directions, stride=stride).flatten(2).sort(-1).values)
        found, wanted = along
        total = total + ((found - wanted).abs().mean(-1) / (wanted.std(-1) + FLAT)).mean() / len(scales)
    return total


def kl_to_unit(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(log_variance)) to N(0, 1), averaged over all elements (nats per latent element)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def alignment(projection_BNP: Tensor, tokens_BTP: Tensor) -> Tensor:
    """REPA: mean negative cosine similarity; the encoder's token grid is resampled (bilinear) to the SiT's where they differ."""
    side, source = int(projection_BNP.shape[1] ** 0.5), int(tokens_BTP.shape[1] ** 0.5)
    if side != source:
        grid = tokens_BTP.transpose(1, 2).reshape(tokens_BTP.shape[0], -1, source, source)
        grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        tokens_BTP = grid.flatten(2).transpose(1, 2)
    return -F.cosine_similarity(projection_BNP, tokens_BTP, dim=-1).mean()


def unlike(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """1 - cosine of features (B, T, D), averaged over tokens, then over the layers given (0 = alike)."""
    pairs = zip(found, wanted, strict=True)
    return torch.stack([1 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs]).mean()


class Draws(NamedTuple):
    """All that is random in the denoising loss of a batch, but for its latents' deviates: keyed by the samples' positions in the run."""

    jitter: Tensor  # (B, E) standard normal
    noise: Tensor  # (B, C, H, W) standard normal
    t: Tensor  # (B,) in [0, 1]: uniform, or the logistic function of a normal (arXiv 2403.03206)
    is_null: Tensor  # bool (B,), whose condition is the null


def draws(
    seed: int,
    positions: np.ndarray | Tensor,
    condition: int,
    latent: Sequence[int],
    weights: DiffusionLosses,
    place: Place,
) -> Draws:
    """Of the samples at these positions; `condition` is E, `latent` (C, H, W)."""
    bring, device = place.bring, place.device
    if weights.time == "uniform":
        t = bring(uniform(seed, "time", positions, device=device))
    else:
        t = torch.sigmoid(bring(normal(seed, "time", positions, (), device)) + weights.time_mean)
    jitter = bring(normal(seed, "jitter", positions, (condition,), device))
    noise = bring(normal(seed, "noise", positions, latent, device))
    return Draws(jitter, noise, t, uniform(seed, "null", positions, device=device) < weights.null_share)
