"""Latents as a SiT draws them: noise is added to a tile's own, and the SiT takes it away again (SDEdit, arXiv 2108.01073).

What a SiT draws is smoother than what an encoder gives. A decoder that has seen both can give back the detail that is missing, where
losses ask it to: a discriminator, and features; not the tile's pixels, which the redrawn latents no longer hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthfactory.model.interpolant import noised
from synthfactory.model.sit import SiT
from synthfactory.model.vit import ViT
from synthfactory.sample.network import Network
from synthfactory.sample.solvers import integrate
from synthfactory.spec.sampler import Guidance, Sampler
from train.config import Redrawn
from train.loader import Batch
from train.place import Place
from train.streams import normal, stream, uniform

CELLS = 2  # of what was redrawn, means of squares of so many latent cells are compared: layout and colours, no detail


class Redrawing:
    """A fixed SiT, and the encoder whose embedding of the tile itself is its condition."""

    def __init__(self, wanted: Redrawn, sit: SiT, encoder: ViT, place: Place, seed: int) -> None:
        self._wanted, self._seed, self._place = wanted, seed, place
        self._sit = sit.to(place.device).float().eval().requires_grad_(False)
        self._encoder = encoder
        # Half the time, and rounding is far below the noise; a float64 run asks for equality over workers, not for speed.
        dtype = torch.float32 if place.dtype == torch.float64 else torch.bfloat16
        self._network = Network(self._sit, dtype)
        self._sampler = Sampler(solver="ab2", steps=wanted.steps, guidance=Guidance(scale=wanted.scale))

    def __call__(self, batch: Batch, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(latents (B, C, h, w) of which a share is drawn anew; bool (B, 1, 1, 1), which). Time is the step's, the rest the sample's.

        Gradients reach the latents that stay, and nothing else.
        """
        at = batch.positions.tolist()
        chosen = torch.from_numpy(uniform(self._seed, "redrawn", at) < self._wanted.share).to(latents.device)
        wide = chosen[:, None, None, None]
        if not chosen.any():
            return latents, wide
        found = torch.zeros_like(latents).detach()
        found[chosen] = self._drawn(batch, latents.detach()[chosen].float(), chosen).to(latents.dtype)
        return torch.where(wide, found, latents), wide

    @torch.no_grad()
    def _drawn(self, batch: Batch, own: Tensor, chosen: Tensor) -> Tensor:
        low, high = self._wanted.start
        start = low + (high - low) * float(stream(self._seed, "start", batch.step).random())
        noise = self._place.bring(normal(self._seed, "redrawing", batch.positions.tolist(), own.shape[1:]))[chosen]
        conditions = self._encoder.embed_tiles(self._place.bring(batch.images)[chosen])
        velocity = self._network.velocity(conditions, self._sampler.guidance)
        times = torch.full((len(own),), start, device=own.device)
        found = integrate(
            self._sampler,
            lambda x, t: start * velocity(x, start * t),  # the path from `start` to 0, at another speed
            noised(self._sit.normalise(own), noise.float(), times),
            lambda: noise,
        )
        return self._sit.denormalise(found)


def coarse(pixels_B3HW: Tensor, side_px: int) -> Tensor:
    """Means of squares, at the size they were."""
    return F.interpolate(F.avg_pool2d(pixels_B3HW, side_px), scale_factor=float(side_px))
