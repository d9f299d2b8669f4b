"""Time for memory and memory for time: recomputed activations, compiled networks, bfloat16 between blocks. None changes what is learnt,
up to rounding.
"""

from __future__ import annotations

from torch import nn

from synthfactory.model.sit import SiT
from synthfactory.model.vae import VAE
from synthfactory.model.vit import ViT
from train.config import TrainConfig
from train.discriminator import PatchDiscriminator


def prepare(config: TrainConfig, module: nn.Module) -> None:
    """As the config's `recompute`, `lean` and `compile` say, in place: names of weights stay what they are."""
    for part in list(module.modules()):
        if isinstance(part, SiT):
            part.recompute, part.narrow = config.recompute, config.lean
        if config.compile and isinstance(part, SiT):
            for block in part.blocks:  # alike, so that one compilation serves all
                block.compile()
        if config.compile and isinstance(part, ViT | PatchDiscriminator):
            part.compile()
        if config.compile and isinstance(part, VAE):  # it is called by these two, never as a whole
            part.kl.encoder.compile()
            part.kl.decoder.compile()
