"""SiT: a transformer that predicts the velocity of noisy latents (arXiv 2401.08740), conditioned on an embedding.

State-dict names are those of REPA-E's SiT (arXiv 2504.10483), except that the label table is a linear layer from the
embedding (`y_embedder.proj`) with a learned null (`y_embedder.null`), since CytoSyn has no class input.

Shapes: B batch, C latent channels, H W latent grid, N = (H/p)(W/p) tokens, D width, E embedding width, P projection width.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class SiTConfig(BaseModel):
    """Size and form of a SiT; the defaults are SiT-XL/2 with CytoSyn's conditioning (682.9M parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_channels: int = Field(default=4, ge=1)
    latent_size: int = Field(default=28, ge=1, description="height and width of the latent, 28 for 224 px at f8")
    patch_size: int = Field(default=2, ge=1)
    width: int = Field(default=1152, ge=8)
    depth: int = Field(default=28, ge=1)
    heads: int = Field(default=16, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)
    condition_width: int = Field(default=768, ge=1)
    condition_mean: float = Field(default=0.0, description="subtracted from the embedding before the linear layer")
    condition_std: float = Field(default=1.0, gt=0, description="the embedding is divided by it")
    qk_norm: bool = False
    null_form: Literal["learned", "zeros"] = "learned"
    projection_depth: int | None = Field(default=8, description="block after which alignment reads; null = none")
    projection_hidden: int = Field(default=2048, ge=1)
    projection_width: int = Field(default=768, ge=1)
    norm_eps: float = Field(default=1e-6, gt=0)
    latent_norm_eps: float = Field(default=1e-4, gt=0)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, (1, grid*grid, width) float32: the first half of the width is the column's."""

    def one_axis(positions: Tensor) -> Tensor:
        frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4.0))
        angles = positions.reshape(-1, 1).double() * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([one_axis(columns), one_axis(rows)], dim=1).float().unsqueeze(0)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimeEmbedder(nn.Module):
    """Time in [0, 1] -> (B, D): 256 sinusoids, then an MLP."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_B.device) / half)
        angles = t_B.float()[:, None] * rates[None]
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))  # type: ignore[no-any-return]


class ConditionEmbedder(nn.Module):
    """Embedding (B, E) -> (B, D) by one linear layer; rows marked null get the null vector instead."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.mean, self.std = config.condition_mean, config.condition_std
        self.proj = nn.Linear(config.condition_width, config.width)
        self.null = nn.Parameter(torch.zeros(config.width), requires_grad=config.null_form == "learned")

    def forward(self, condition_BE: Tensor, is_null_B: Tensor | None = None) -> Tensor:
        embedded = self.proj((condition_BE - self.mean) / self.std)
        if is_null_B is None:
            return embedded  # type: ignore[no-any-return]
        return torch.where(is_null_B[:, None], self.null.to(embedded.dtype), embedded)


class Attention(nn.Module):
    """Multi-head self-attention through torch's SDPA."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        head = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = nn.LayerNorm(head, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, tokens, width = x_BND.shape
        q, k, v = self.qkv(x_BND).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a tanh-GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer block with adaLN-Zero modulation."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, elementwise_affine=False, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, elementwise_affine=False, eps=config.norm_eps)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=-1)
        x_BND = x_BND + gate1.unsqueeze(1) * self.attn(_modulate(self.norm1(x_BND), shift1, scale1))
        return x_BND + gate2.unsqueeze(1) * self.mlp(_modulate(self.norm2(x_BND), shift2, scale2))  # type: ignore[no-any-return]


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer to patches."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.width, elementwise_affine=False, eps=config.norm_eps)
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.latent_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x_BND), shift, scale))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, N, D) by a strided convolution."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class SiT(nn.Module):
    """The velocity network, the normalisation of its latents, and the projector for representation alignment."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        if config.width % config.heads or config.width % 4 or config.latent_size % config.patch_size:
            raise ValueError("SiT: heads and 4 must divide width, and patch_size must divide latent_size")
        self.config = config
        self.grid = config.latent_size // config.patch_size
        self.x_embedder = PatchEmbed(config.latent_channels, config.width, config.patch_size)
        self.t_embedder = TimeEmbedder(config.width)
        self.y_embedder = ConditionEmbedder(config)
        self.pos_embed = nn.Parameter(sincos_positions(config.width, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.projectors = nn.ModuleList()
        if config.projection_depth is not None:
            hidden = config.projection_hidden
            self.projectors.append(
                nn.Sequential(
                    nn.Linear(config.width, hidden),
                    nn.SiLU(),
                    nn.Linear(hidden, hidden),
                    nn.SiLU(),
                    nn.Linear(hidden, config.projection_width),
                )
            )
        self.final_layer = FinalLayer(config)
        # Affine-free BatchNorm: only its running statistics are used, to normalise latents (REPA-E, eps 1e-4).
        self.bn = nn.BatchNorm2d(config.latent_channels, eps=config.latent_norm_eps, affine=False)
        self.recompute = False  # in training: blocks are computed twice, so that their activations need not be kept
        self.narrow = False  # in training: bfloat16 between the blocks, as autocast has it inside them

    def initialise(self, generator: torch.Generator) -> None:
        """DiT's initial weights, drawn from `generator` alone: Xavier, 0.02 for embedders, zero for gates and output."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                weight = module.weight.data
                if "t_embedder" in name:
                    weight.normal_(0.0, 0.02, generator=generator)
                elif "adaLN_modulation" in name or name == "final_layer.linear":
                    weight.zero_()
                else:
                    nn.init.xavier_uniform_(weight.view(weight.shape[0], -1), generator=generator)
                if module.bias is not None:
                    module.bias.data.zero_()
        if self.config.null_form == "learned":
            self.y_embedder.null.data.normal_(0.0, 0.02, generator=generator)

    def normalise(self, latents_BCHW: Tensor) -> Tensor:
        """Latents of the VAE -> zero mean and unit variance per channel, by the stored statistics."""
        return (latents_BCHW - self._mean()) / self._std()

    def denormalise(self, latents_BCHW: Tensor) -> Tensor:
        """The inverse of `normalise`, before decoding."""
        return latents_BCHW * self._std() + self._mean()

    def _mean(self) -> Tensor:
        assert self.bn.running_mean is not None
        return self.bn.running_mean.reshape(1, -1, 1, 1)

    def _std(self) -> Tensor:
        assert self.bn.running_var is not None
        return (self.bn.running_var + self.bn.eps).sqrt().reshape(1, -1, 1, 1)

    def forward(
        self, x_BCHW: Tensor, t_B: Tensor, condition_BE: Tensor, is_null_B: Tensor | None = None, project: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity (B, C, H, W) at normalised latents x and times t; with `project` also (B, N, P) for alignment.

        is_null (B,) bool marks rows that get the null condition. Raises RuntimeError on shapes that do not fit.
        """
        return self.at(x_BCHW, self.t_embedder(t_B) + self.y_embedder(condition_BE, is_null_B), project)

    def at(self, x_BCHW: Tensor, c_BD: Tensor, project: bool = False) -> tuple[Tensor, Tensor | None]:
        """As `forward`, from the sum c of embedded time and condition: samplers embed each of the two once."""
        # In one layout: of a transposed input torch's compiler (2.13, CPU) gets the first block's attention gradients wrong (14 %).
        x = (self.x_embedder(x_BCHW) + self.pos_embed).contiguous()
        if self.narrow and self.training:
            x = x.bfloat16()
        projection = None
        again = self.recompute and self.training and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks, start=1):
            x = checkpoint(block, x, c_BD, use_reentrant=False, preserve_rng_state=False) if again else block(x, c_BD)
            if project and number == self.config.projection_depth:
                projection = self.projectors[0](x)
        return self._unpatchify(self.final_layer(x, c_BD)), projection

    def _unpatchify(self, x_BNP: Tensor) -> Tensor:
        p, g, channels = self.config.patch_size, self.grid, self.config.latent_channels
        x = x_BNP.reshape(-1, g, g, p, p, channels)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(-1, channels, g * p, g * p)


def sit_from_dict(values: dict[str, Any]) -> SiT:
    """A SiT with uninitialised weights from the `sit` part of a model folder's config.json."""
    return SiT(SiTConfig.model_validate(values))
