"""Perceptual losses: a tile and its reconstruction are compared by what a fixed network sees in them, not pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from synthfactory.model.vit import ViT
from synthfactory.spec.errors import InputError
from train import losses
from train.objectives import VAELosses
from train.place import Place, wide
from train.sizes import check_compared


class Features:
    """`weight` times this is added to the reconstruction: float (B, 3, S, S) in [-1, 1], found and wanted -> a number, 0 where alike."""

    def __init__(self, weight: float, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.weight, self._compare = weight, compare

    def __call__(self, found: Tensor, wanted: Tensor) -> Tensor:
        return self._compare(found, wanted)


def features_of(wanted: VAELosses, encoder: ViT | None, place: Place) -> Features | None:
    """As the config says; None where nothing is to be compared. InputError where lpips is asked for and not installed, or where the
    crop is no multiple of the encoder's patch.
    """
    if wanted.perceptual == 0:
        return None
    if wanted.features == "lpips":
        return Features(1.0 if wanted.perceptual is None else wanted.perceptual, lpips_of(place, "vae.features"))
    if encoder is None:
        return None
    check_compared(wanted.crop, encoder.config.patch_size, encoder.config.image_size)
    there = encoder.to(place.device, place.dtype)

    def compare(found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            aims = [wide(layer) for layer in there.layers((wanted + 1) / 2)]
        return losses.unlike([wide(layer) for layer in there.layers((found + 1) / 2)], aims)

    return Features(1.0 if wanted.perceptual is None else wanted.perceptual, compare)


def lpips_of(place: Place, field: str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (arXiv 1801.03924) on VGG-16, of the package of that name. InputError, at the config's `field`, where it is not there."""
    try:
        import lpips
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{field}: lpips cannot be imported ({error}); pip install 'synthfactory[lpips]', or write features: encoder"
        ) from None
    try:
        found = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:  # it fetches VGG-16 at its first use
        raise InputError(
            f"{field}: lpips cannot fetch its weights ({error}); put them into torch's cache, or write features: encoder"
        ) from None
    network: Any = found.to(place.device, place.dtype).eval().requires_grad_(False)
    return lambda found, wanted: wide(network(found, wanted)).mean()
