"""A compact ViT encoder of H0-mini's form (arXiv 2501.16239), with timm's state-dict names.

Packed SwiGLU, layer scale, one class token and register tokens in front of the patch tokens. H0-mini is the default size:
ViT-B/14, 4 registers, 85.7M parameters, output (N, 261, 768) at 224 px.

Shapes: B batch, H W pixels, T = 1 + registers + patches tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class ViTConfig(BaseModel):
    """Size, form and input statistics of an encoder; the defaults are H0-mini's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=224, ge=1)
    patch_size: int = Field(default=14, ge=1)
    width: int = Field(default=768, ge=1)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    mlp_hidden: int = Field(default=4096, ge=2, description="rows of fc1: twice the width of the gated product")
    registers: int = Field(default=4, ge=0)
    layer_scale: float | None = 1e-5
    norm_eps: float = Field(default=1e-6, gt=0)
    mean: tuple[float, float, float] = (0.707223, 0.578729, 0.703617)
    std: tuple[float, float, float] = (0.211883, 0.230117, 0.177517)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PackedSwiGLU(nn.Module):
    """fc1 gives gate and value in one matrix; the gate passes through SiLU (timm's SwiGLUPacked)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention through torch's SDPA."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, width = x_BTD.shape
        q, k, v = self.qkv(x_BTD).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, start = config.width, config.layer_scale
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, config.heads)
        self.ls1 = nn.Identity() if start is None else LayerScale(width, start)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = PackedSwiGLU(width, config.mlp_hidden)
        self.ls2 = nn.Identity() if start is None else LayerScale(width, start)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Pixels to patch tokens."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.proj(x_B3HW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def images_to_tensor(images_BHW3: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (B, H, W, 3), 0-255 -> (B, 3, H, W) in [0, 1], where the images lie."""
    return (images_BHW3.permute(0, 3, 1, 2).float() / 255.0).to(dtype)


class ViT(nn.Module):
    """The encoder: pixels -> tokens; the class token is the embedding that conditions SiT."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, self.grid**2, config.width)
        )  # patches only, as timm with registers
        self.patch_embed = PatchEmbed(config.width, config.patch_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.register_buffer("_mean", torch.tensor(config.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.std).reshape(1, 3, 1, 1), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """timm's initial weights (normal 0.02, zero biases), drawn from `generator` alone."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.data.normal_(0.0, 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.data.zero_()
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            token.data.normal_(0.0, 0.02, generator=generator)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """float (B, 3, H, W) in [0, 1] -> normalised tokens (B, T, D): class, registers, patches in row order."""
        x = self._embedded_patches(pixels_B3HW, self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def _embedded_patches(self, pixels_B3HW: Tensor, positions: Tensor) -> Tensor:
        x = self.patch_embed((pixels_B3HW - self._mean) / self._std) + positions
        batch = x.shape[0]
        return torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), x], dim=1)

    def layers(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """float (B, 3, S, S) in [0, 1] -> patch tokens (B, (S / patch)^2, D) after every block, for losses on features.

        S is a multiple of the patch size, at most the image size: a crop takes the positions of the upper left corner.
        """
        side = pixels_B3HW.shape[-1] // self.config.patch_size
        corner = self.pos_embed.reshape(1, self.grid, self.grid, -1)[:, :side, :side].flatten(1, 2)
        x = self._embedded_patches(pixels_B3HW, corner)
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(self.patch_tokens(x))
        return found

    def class_token(self, tokens_BTD: Tensor) -> Tensor:
        """The raw class token (B, D)."""
        return tokens_BTD[:, 0]

    def patch_tokens(self, tokens_BTD: Tensor) -> Tensor:
        """The patch tokens (B, grid*grid, D), without class token and registers."""
        return tokens_BTD[:, 1 + self.config.registers :]

    @torch.no_grad()
    def embed(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """uint8 (N, H, W, 3) -> class tokens, float32 (N, D). Raises ValueError on another shape or dtype."""
        return self._embedded(images, batch_size, self.embed_tiles, (self.config.width,))

    @torch.no_grad()
    def embed_patches(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """uint8 (N, H, W, 3) -> patch tokens in row order, float32 (N, grid*grid, D). Raises as `embed`."""

        def patches(tiles: Tensor) -> Tensor:
            return self.patch_tokens(self._tokens(tiles)).float()

        return self._embedded(images, batch_size, patches, (self.grid**2, self.config.width))

    def _embedded(
        self, images: np.ndarray, batch_size: int, embed: Callable[[Tensor], Tensor], shape: tuple[int, ...]
    ) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (B, H, W, 3), not {images.dtype} {images.shape}")
        found = np.zeros((len(images), *shape), np.float32)
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            found[start : start + len(batch)] = embed(batch.to(self.pos_embed.device)).cpu().numpy()
        return found

    def _tokens(self, tiles_BHW3: Tensor) -> Tensor:
        return self(tiles_BHW3.permute(0, 3, 1, 2).float() / 255.0)  # type: ignore[no-any-return]

    def embed_tiles(self, tiles_BHW3: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) on the encoder's device -> class tokens there, float32 (B, D)."""
        return self.class_token(self._tokens(tiles_BHW3)).float()


def parameter_count(module: nn.Module) -> int:
    """Number of weights, fixed ones (positions) included."""
    return sum(parameter.numel() for parameter in module.parameters())


def vit_from_dict(values: dict[str, Any]) -> ViT:
    """A ViT with uninitialised weights from the `encoder` part of a model folder's config.json."""
    return ViT(ViTConfig.model_validate(values))
