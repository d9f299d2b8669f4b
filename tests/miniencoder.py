"""An encoder of H0-mini's published form in miniature: timm's config.json, tensors under timm's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MEAN, STD = [0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]
WIDTH, DEPTH, SIDE, PATCH, REGISTERS = 64, 2, 28, 14, 4


def published_state(random: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors under the names that timm gives a ViT with registers and packed SwiGLU, written out by hand."""

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.2

    state = {
        "cls_token": some(1, 1, WIDTH),
        "reg_token": some(1, REGISTERS, WIDTH),
        "pos_embed": some(1, (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": some(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": some(WIDTH),
        "norm.weight": 1 + some(WIDTH),
        "norm.bias": some(WIDTH),
    }
    for number in range(DEPTH):
        for name, shape in {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "ls1.gamma": (WIDTH,), "ls2.gamma": (WIDTH,),
            "mlp.fc1.weight": (96, WIDTH), "mlp.fc1.bias": (96,), "mlp.fc2.weight": (WIDTH, 48), "mlp.fc2.bias": (WIDTH,),
        }.items():  # fmt: skip
            state[f"blocks.{number}.{name}"] = some(*shape)
    return state


def write_published(
    folder: Path, change: Callable[[dict[str, Any]], Any] = lambda config: None, side: int = SIDE
) -> Path:
    """A repository of H0-mini's published form: config.json as timm writes it, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(published_state(torch.Generator().manual_seed(3)), folder / "model.safetensors")
    config = {
        "architecture": "vit_base_patch14_reg4_dinov2",
        "num_classes": 0,
        "num_features": WIDTH,
        "pretrained_cfg": {"input_size": [3, side, side], "mean": MEAN, "std": STD, "interpolation": "bicubic"},
    }
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
