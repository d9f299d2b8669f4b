"""Three finished runs -> one model folder that a spec can name: safetensors by hash, config.json, a card without figures yet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthfactory.model.config_check import FORMAT
from synthfactory.model.folder import FIGURES
from synthfactory.spec.errors import InputError
from train import checkpoint
from train.card import write_card
from train.config import load_config

HEADS = ("class_head.", "attribute_head.", "grid_head.")


def _average(run: Path, decay: float | None = None) -> tuple[int, dict[str, Tensor]]:
    step, path = checkpoint.average_file(run, decay)
    return step, load_file(path)


def _seconds(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["seconds"])


def _write(path: Path, state: dict[str, Tensor]) -> str:
    halved = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in sorted(state.items())}
    save_file(halved, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export(
    sit_run: Path,
    out: Path,
    *,
    model_id: str,
    revision: str,
    licence: dict[str, Any],
    domain: str | None = None,
    decay: float | None = None,
) -> Path:
    """Writes the averaged weights of a diffusion run and of the encoder and VAE it was trained with, as float16, to `out`.

    `domain` says what the model draws, where that is not what its labels say; plans and cards repeat it. `decay` picks one of several
    averages of the diffusion run; None takes the first of its config.

    Raises InputError where a run has no checkpoint or is of another mode, and where encoder or VAE moved on since.
    """
    config = load_config(f"{sit_run}/config.yaml")
    if config.mode != "diffusion" or config.encoder_run is None or config.vae_run is None:
        raise InputError(f"{sit_run}: is a run of mode {config.mode}; export names a run of mode diffusion")
    encoder_run, vae_run = Path(config.encoder_run), Path(config.vae_run)
    extra = json.loads((sit_run / "extra.json").read_text())
    sit_step, sit = _average(sit_run, None if decay == config.optimiser.ema[0] else decay)
    encoder_step, encoder = _average(encoder_run)
    vae_step, vae = _average(vae_run)
    if (encoder_step, vae_step) != (extra["encoder_step"], extra["vae_step"]):
        raise InputError(
            f"{sit_run}: was trained on encoder step {extra['encoder_step']} and VAE step {extra['vae_step']}"
        )
    out.mkdir(parents=True, exist_ok=True)
    vit = {name.removeprefix("vit."): value for name, value in encoder.items() if not name.startswith(HEADS)}
    files = {
        "sit.safetensors": _write(out / "sit.safetensors", sit),
        "vae.safetensors": _write(out / "vae.safetensors", vae),
        "encoder.safetensors": _write(out / "encoder.safetensors", vit),
    }
    encoder_config, vae_config = load_config(f"{encoder_run}/config.yaml"), load_config(f"{vae_run}/config.yaml")
    runs = {
        name: {"steps": step, "batch": used.optimiser.batch, "precision": used.precision, "seed": used.seed}
        for name, step, used in (
            ("encoder", encoder_step, encoder_config),
            ("vae", vae_step, vae_config),
            ("sit", sit_step, config),
        )
    }
    description: dict[str, Any] = {
        "format": FORMAT,
        "id": model_id,
        "revision": revision,
        "tile_size_px": int(config.network["latent_size"]) * 8,
        "resolution_mpp": 0.5,
        "sit": extra["network"],
        "vae": vae_config.network,
        "encoder": {"id": f"{model_id}-encoder", **encoder_config.network},
        "files": files,
        "licence": licence,
        "training": {
            "tiles": extra["tiles"],
            "classes": extra["classes"],
            "data_sha256": extra["data_sha256"],
            "runs": runs,
            "torch": torch.__version__,
        },
    }
    if domain:
        description["domain"] = domain
    (out / "config.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    runs_by_part = {"encoder": encoder_run, "vae": vae_run, "sit": sit_run}
    hours = {name: round(_seconds(run) / 3600, 2) for name, run in runs_by_part.items()}
    (out / FIGURES).write_text(json.dumps({"training_hours": hours}, indent=1) + "\n")
    write_card(out)
    return out
