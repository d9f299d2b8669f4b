"""A model folder with random weights, and a bank that fits it: real files of the real form, small enough for any test.

32-px tiles, SiT of 2 blocks of width 32, VAE at an eighth of the resolution, ViT of one block; about 0.2M parameters.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import write_bank
from synthfactory.model.config_check import FORMAT
from synthfactory.model.folder import open_model
from synthfactory.model.sit import sit_from_dict
from synthfactory.model.vae import vae_from_dict
from synthfactory.model.vit import vit_from_dict

EMBEDDING = 16
SIZES = {
    "sit": {
        "latent_size": 4, "width": 32, "depth": 2, "heads": 2, "condition_width": EMBEDDING,
        "projection_depth": None, "projection_width": EMBEDDING, "projection_hidden": 32,
    },
    "vae": {"unshuffle": 4, "channels": [16, 16], "layers_per_block": 1, "norm_groups": 4, "mid_attention": False},
    "encoder": {"image_size": 32, "patch_size": 8, "width": EMBEDDING, "depth": 1, "heads": 2, "mlp_hidden": 32,
                "registers": 0, "layer_scale": None},
}  # fmt: skip


def make_tiny_model(folder: Path, seed: int = 0, projection_depth: int | None = None) -> Path:
    """Writes FOLDER as `synthfactory-train export` would; `model: FOLDER` loads it. Equal seeds give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sit = {**SIZES["sit"], "projection_depth": projection_depth}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "sit": sit_from_dict(sit),
            "vae": vae_from_dict(SIZES["vae"]),
            "encoder": vit_from_dict(SIZES["encoder"]),
        }
        for module in parts.values():
            for name, parameter in module.named_parameters():
                if name != "pos_embed" and not name.startswith("kl."):
                    parameter.data.normal_(0.0, 0.15)
    files = {}
    for part, module in parts.items():
        path = folder / f"{part}.safetensors"
        save_file({name: value.contiguous() for name, value in sorted(module.state_dict().items())}, path)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    config = {
        "format": FORMAT,
        "id": "tiny",
        "revision": "1",
        "tile_size_px": SIZES["encoder"]["image_size"],
        "resolution_mpp": 0.5,
        "sit": sit,
        "vae": SIZES["vae"],
        "encoder": {"id": "tiny-encoder", **SIZES["encoder"]},
        "files": files,
        "licence": {"name": "Apache-2.0", "sharing": "allowed"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "figures.json").write_text(json.dumps({"timing": {"seconds_per_call": 0.0005}}))
    return folder


def make_bank_file(
    path: Path, model: Path, classes: dict[str, int] | None = None, seed: int = 0, sites: int | None = None
) -> Path:
    """Writes a bank of random embeddings: {class: number of patients}, three tiles of each patient, ids like PATIENT-b-1.

    Of so many `sites`, None: unknown ones.
    """
    random = np.random.default_rng(seed)
    labels, patients, slides, of_sites = [], [], [], []
    for name, count in (classes or {"alpha": 4, "beta": 3}).items():
        for number in range(count):
            for tile in range(3):
                labels.append(name)
                patients.append(f"PATIENT-{name}-{number}")
                slides.append(f"SLIDE-{name}-{number}-{tile % 2}")
                of_sites.append(None if sites is None else f"SITE-{number % sites}")
    vectors = random.standard_normal((len(labels), EMBEDDING)).astype(np.float32)
    levels = ["tile"] * len(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = open_model(str(model)).encoder
    write_bank(str(path), make_bank(vectors, labels, levels, patients, slides, encoder, str(path), sites=of_sites))
    return path
