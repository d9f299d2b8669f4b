"""A patch discriminator (arXiv 1611.07004) with hinge losses, and LeCAM's regularisation (arXiv 2104.03310) for few data.

GroupNorm instead of BatchNorm: what one tile scores does not depend on the others, nor on how many workers share a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LECAM_MEMORY = 0.999
Mean = Callable[[Tensor], Tensor]  # over all workers, of what no gradient flows through


def smallest_px(layers: int) -> int:
    """The side of the smallest picture of which something is left to score."""
    return int(3 * 2**layers)


class PatchDiscriminator(nn.Module):
    """float (B, 3, H, W) in [-1, 1] -> scores (B, 1, h, w), above 0 where a patch looks real."""

    real_level: Tensor
    fake_level: Tensor

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        inner = width
        for number in range(1, layers + 1):
            outer = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            stages += [nn.Conv2d(inner, outer, 4, stride, 1, bias=False), nn.GroupNorm(8, outer), nn.LeakyReLU(0.2)]
            inner = outer
        stages.append(nn.Conv2d(inner, 1, 4, 1, 1))
        self.stages = nn.Sequential(*stages)
        self.register_buffer("real_level", torch.zeros(()))  # running means of what it scores, for LeCAM
        self.register_buffer("fake_level", torch.zeros(()))

    def initialise(self, generator: torch.Generator) -> None:
        """Normal 0.02, drawn from `generator` alone."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data.normal_(0.0, 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.data.zero_()

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Scores of every patch."""
        return self.stages(pixels_B3HW)  # type: ignore[no-any-return]

    def loss(self, real: Tensor, fake: Tensor, lecam: float, mean: Mean) -> Tensor:
        """Hinge loss on scores of real and drawn tiles. `mean` averages over all workers, so that all keep the same levels."""
        hinge: Tensor = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        with torch.no_grad():
            for level, scores in ((self.real_level, real), (self.fake_level, fake)):
                level.lerp_(mean(scores.mean().to(level.dtype)), 1 - LECAM_MEMORY)
        if not lecam:
            return hinge
        towards = F.relu(real - self.fake_level).square().mean() + F.relu(self.real_level - fake).square().mean()
        return hinge + lecam * towards


def generator_loss(fake: Tensor) -> Tensor:
    """What the autoencoder wants of the scores of its tiles."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, mean: Mean) -> Tensor:
    """How much the adversarial loss must count to pull as hard as the reconstruction, at the decoder's last layer (arXiv 2012.09841)."""
    one = mean(torch.autograd.grad(reconstruction, last, retain_graph=True)[0]).norm()
    other = mean(torch.autograd.grad(adversarial, last, retain_graph=True)[0]).norm()
    found: Tensor = (one / (other + 1e-4)).clamp(0.0, 1e4)
    return found
