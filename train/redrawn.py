"""Latents as a SiT draws them: noise is added to a tile's own, and the SiT takes it away again (SDEdit, arXiv 2108.01073).

What a SiT draws is smoother than what an encoder gives. A decoder that has seen both can give back the detail that is missing, where a
distance of patches or a discriminator asks it to; the tile's pixels are no aim, for redrawn latents no longer hold them. What must not
change there is what the decoder made of those latents before it learnt, seen from afar: layout and colours.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from synthfactory.model.interpolant import noised
from synthfactory.model.weights import LoadedModel
from synthfactory.sample.network import Network
from synthfactory.sample.solvers import integrate
from synthfactory.spec.sampler import Guidance, Sampler
from train.config import TrainConfig
from train.loader import Batch
from train.objectives import Redrawn
from train.place import Place
from train.streams import normal, stream, uniform

CELLS = 2  # of what was redrawn, means of squares of so many latent cells are compared: layout and colours, no detail


class Redrawing:
    """A model as it is, whose SiT draws; its condition is the embedding of the tile itself."""

    def __init__(self, wanted: Redrawn, base: LoadedModel, place: Place, config: TrainConfig) -> None:
        assert base.encoder is not None
        self._wanted, self._seed, self._place = wanted, config.seed, place
        self._sit = base.sit.to(place.device).float().eval().requires_grad_(False)
        self._encoder = base.encoder.to(place.device)
        self._decoder = copy.deepcopy(base.vae).to(place.device, place.dtype).eval().requires_grad_(False)
        self._side_px = CELLS * base.vae.config.factor
        self._network = Network(self._sit, torch.bfloat16 if config.precision == "bfloat16" else torch.float32)
        self._sampler = Sampler(solver="ab2", steps=wanted.steps, guidance=Guidance(scale=wanted.scale))

    def __call__(self, batch: Batch, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(latents (B, C, h, w) of which a share is drawn anew; bool (B, 1, 1, 1), which). Time is the step's, the rest the sample's.

        Gradients reach the latents that stay, and nothing else.
        """
        chosen = uniform(self._seed, "redrawn", batch.positions, device=latents.device) < self._wanted.share
        wide = chosen[:, None, None, None]
        if not chosen.any():
            return latents, wide
        found = torch.zeros_like(latents).detach()
        found[chosen] = self._drawn(batch, latents.detach()[chosen].float(), chosen).to(latents.dtype)
        return torch.where(wide, found, latents), wide

    def compared(
        self, decoded: Tensor, pixels: Tensor, latents: Tensor, which: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(what a reconstruction's losses look at, what it should be, what it should resemble) of decoded latents: of those that stayed,
        the tile; of the others, what the base's decoder makes of them, coarsely, and nothing in detail.
        """
        with torch.no_grad():
            before = coarse(self._decoder.decode(latents).to(pixels.dtype), self._side_px)
        found = torch.where(which, coarse(decoded, self._side_px), decoded)
        return found, torch.where(which, before, pixels), torch.where(which, decoded.detach(), pixels)

    @torch.no_grad()
    def _drawn(self, batch: Batch, own: Tensor, chosen: Tensor) -> Tensor:
        low, high = self._wanted.start
        start = low + (high - low) * float(stream(self._seed, "start", batch.step).random())
        noise = self._place.bring(normal(self._seed, "redrawing", batch.positions, own.shape[1:], own.device))[chosen]
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
