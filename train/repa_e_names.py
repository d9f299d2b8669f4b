"""A model folder's networks under REPA-E's names (arXiv 2504.10483), as one checkpoint: {"ema": SiT, "vae": autoencoder}.

The SiT has them already, except that a linear layer (y_embedder.proj) and a null stand where REPA-E has a table of labels. The
autoencoder's are those of the original SD-VAE. `synthfactory model import` reads the file back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthfactory.model.tensors import read_tensors
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError

CHECKPOINT = "repa-e.pt"
# Today's diffusers' names -> the original's. Decoder levels count the other way round: <N> is turned.
NAMES = [(re.compile(old), new) for old, new in (
    (r"^kl\.", ""),
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.<\1>.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.<\1>.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"coder\.conv_norm_out\.", "coder.norm_out."),
)]  # fmt: skip


def check_form(vae: Mapping[str, Any]) -> None:
    """InputError for an autoencoder that REPA-E's code cannot hold."""
    if int(vae.get("unshuffle", 1)) > 1:
        raise InputError(
            "--repa-e: the autoencoder stands behind a pixel-unshuffle, which REPA-E's has not; leave --repa-e out"
        )


def write_repa_e(folder: Path, vae: Mapping[str, Any]) -> Path:
    """Writes FOLDER/repa-e.pt (tensors alone, float32) from the folder's safetensors; `vae` is its config. OSError where it cannot be."""
    check_form(vae)
    levels = len(vae.get("channels", (128, 256, 512, 512)))
    networks = {part: read_tensors(folder / f"{part}.safetensors") for part in ("sit", "vae")}
    found = {
        "ema": {name: _wide(value) for name, value in networks["sit"].items()},
        "vae": dict(_original(name, value, levels) for name, value in networks["vae"].items()),
    }
    path = folder / CHECKPOINT
    try:
        with beside(path) as new:
            torch.save(found, new)
    except RuntimeError as error:  # torch's own of a full disk
        raise OSError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
    return path


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _original(name: str, value: Tensor, levels: int) -> tuple[str, Tensor]:
    found = name
    for old, new in NAMES:
        found = old.sub(new, found)
    found = re.sub(r"<(\d+)>", lambda match: str(levels - 1 - int(match[1])), found)
    linear = ".attn_1." in found and value.ndim == 2  # a 1 x 1 convolution there
    return found, _wide(value[:, :, None, None] if linear else value)
