"""Finished runs -> one model folder that a spec can name: safetensors by hash, config.json, a card without figures yet."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from synthfactory.embeddings.bank import MPP
from synthfactory.model.config_check import FORMAT
from synthfactory.model.files import sha256_of
from synthfactory.model.folder import FIGURES, ModelFolder
from synthfactory.model.sit import SiTConfig
from synthfactory.model.tensors import read_tensors, write_tensors
from synthfactory.model.vae import VAEConfig
from synthfactory.plan.calibration import CALIBRATION
from synthfactory.run.around import check_outside
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown
from train import checkpoint
from train.base import open_base
from train.card import SHEET, write_card
from train.config import TrainConfig, load_config
from train.lora import merged
from train.metrics import last_line
from train.parts import vae_state, vit_state
from train.repa_e_names import check_form, write_repa_e
from train.terms import conditioned, export_terms, notes_of, runs_behind, saw_real, sets_behind


def _average(run: Path, decay: float | None = None) -> tuple[int, dict[str, Tensor]]:
    step, path = checkpoint.average_file(run, decay)
    return step, read_tensors(path)


def _seconds(run: Path) -> float:
    """Of a run that was stopped between a log line and its checkpoint, and went on from there, the log may be empty."""
    return float(last["seconds"]) if (last := last_line(run)) else 0.0


def _write(path: Path, state: dict[str, Tensor], dtype: torch.dtype = torch.float16) -> str:
    cast = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in sorted(state.items())}
    write_tensors(cast, path)
    return sha256_of(path)


def export(
    run: Path,
    out: Path,
    *,
    model_id: str,
    revision: str,
    licence: dict[str, Any] | None = None,
    domain: str | None = None,
    decay: float | None = None,
    repa_e: bool = False,
    half: bool = False,
) -> Path:
    """Writes the averaged weights of a diffusion, finetune or repa-e run, with encoder and VAE, as the model folder `out`; of a run of
    mode vae that went on from a base, the base with this autoencoder.

    `licence` {name, sharing} travels with every artefact; None: those of the base model, else not stated and local. `domain` says what
    the model draws, where that is not what its labels say; plans and cards repeat it. `decay` picks one of several averages; None takes
    the first of the config. With `repa_e` the networks lie in OUT/repa-e.pt as well, under REPA-E's names.

    InputError where a run has no checkpoint or is of another mode, where encoder, VAE or base moved on since, and where the base
    model's terms are not to be changed; where `out` holds what is no part of a model.
    """
    if not (run / "config.yaml").exists():
        what = "is an exported model already" if (run / "config.json").exists() else "is no run folder"
        raise InputError(f"{run}: {what}; name the folder that `synthfactory-train run --run` wrote")
    if not model_id.strip():
        raise InputError("--id: is empty; name the model as published sets shall state it")
    check_outside(out)
    config = load_config(f"{run}/config.yaml")
    based = None if config.base is None else open_base(config.base)
    if isinstance(based, ModelFolder) and out.resolve() == based.path.resolve():
        raise InputError(f"{out}: is the model that the run went on from, and stays; name another folder")
    if config.mode not in ("diffusion", "finetune", "repa-e") and not (config.mode == "vae" and config.base):
        raise InputError(
            f"{run}: is a run of mode {config.mode}; export names one of mode diffusion, finetune or repa-e, or of mode vae with a base"
        )
    extra = notes_of(run)
    step, state = _average(run, None if decay == config.optimiser.ema[0] else decay)
    behind = runs_behind(run, config)
    terms = export_terms(config, licence, behind)
    if repa_e:
        check_form(_vae_sizes(config))
    made, own = _of_runs if config.base is None else _of_base, _own(config, state)
    with _made_whole(out) as place:
        description, hours = made(config, extra, step, own, place, half)
        description |= {"format": FORMAT, "id": model_id, "revision": revision, "licence": terms}
        description["encoder"].setdefault("id", f"{model_id}-encoder")
        description["training"] |= {
            "tiles": extra["tiles"],
            "synthetic_tiles": extra["synthetic_tiles"],
            "classes": extra["classes"],
            **({"unknown_patients": unknown} if (unknown := extra.get("unknown_patients")) else {}),
            "data_sha256": extra["data_sha256"],
            **({"sets": sets} if (sets := sets_behind(behind)) else {}),
            **({"tars_left_out": left} if (left := len(extra.get("skipped") or ())) else {}),
            "torch": torch.__version__,
        }
        drawn = _domain(domain, description, real=saw_real(behind))
        description.pop("domain", None)
        if drawn is not None:
            description["domain"] = drawn
        if repa_e:
            write_repa_e(place, description["vae"])
        (place / "config.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        hours["vae" if config.mode == "vae" else "sit"] = _hours(run)
        log = {name: value for name, value in last_line(run).items() if name not in ("seconds", "rate", "waiting")}
        (place / FIGURES).write_text(json.dumps({"training_hours": hours, "log": log}, indent=1) + "\n")
        write_card(place)
    return out


WENT_ON = "; it went on from "


def _domain(said: str | None, description: dict[str, Any], *, real: bool) -> str | None:
    """What plans and cards say that a model draws; None: what its labels say. A base of another domain stays named in it: what a model
    learnt first shows for long.
    """
    before = description.get("domain")
    if before is None or said == before:
        return said
    if said is None and not real:
        return str(before)
    base = description["training"]["base"]
    origin = before.partition(WENT_ON)[2] or f"{base['id']} {base['revision']}, which draws {before}"
    return f"{said or 'what its tiles show'}{WENT_ON}{origin}"


# What an export, or a command that measures it, writes into a model's folder.
OWN = frozenset((
    "config.json", "README.md", "repa-e.pt", "sit.safetensors", "vae.safetensors", "encoder.safetensors", "projection.safetensors",
    FIGURES, SHEET, CALIBRATION,
))  # fmt: skip


@contextlib.contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when all is written: nobody finds new weights under an old description.
    InputError where `out` holds what is no model's.
    """
    strange = sorted(path.name for path in out.iterdir() if path.name not in OWN) if out.is_dir() else []
    if strange or (out.exists() and not out.is_dir()):
        what = f"holds {shown(strange[0])}, which is no part of a model" if strange else "is a file"
        raise InputError(f"{out}: {what}; name a new folder")
    out = out.resolve()  # of a link, what it points to is replaced
    out.parent.mkdir(parents=True, exist_ok=True)
    place, before = (out.parent / f".tmp-{secrets.token_hex(6)}" for _ in range(2))
    try:
        place.mkdir()
        yield place
        if out.exists():
            out.rename(before)
        try:
            place.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def _vae_sizes(config: TrainConfig) -> dict[str, Any]:
    if config.base is None:
        return load_config(f"{config.vae_run}/config.yaml").network
    base = open_base(config.base)
    return dict(base.config["vae"]) if isinstance(base, ModelFolder) else {}


def _own(config: TrainConfig, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The run's averaged weights by network: what it trained, and nothing else."""
    if config.mode == "vae":
        return {"vae": vae_state(state)}
    if config.mode != "repa-e":
        return {"sit": state}
    return {
        part: {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        for part in ("sit", "vae")
    }


def _ran(config: TrainConfig, step: int) -> dict[str, Any]:
    plan = config.optimiser
    short = {"of_steps": plan.steps} if step < plan.steps else {}  # a run that was not done
    return {"steps": step, **short, "batch": plan.batch, "precision": config.precision, "seed": config.seed}


def _hours(run: Path) -> float:
    return round(_seconds(run) / 3600, 2)


def _of_runs(
    config: TrainConfig,
    extra: dict[str, Any],
    step: int,
    own: dict[str, dict[str, Tensor]],
    out: Path,
    half: bool,
) -> tuple[dict[str, Any], dict[str, float]]:
    assert config.encoder_run and config.vae_run
    encoder_run, vae_run = Path(config.encoder_run), Path(config.vae_run)
    encoder_step, encoder = _average(encoder_run)
    vae_step, vae = _average(vae_run)
    _check_origin(extra, "encoder", str(encoder_run))
    _check_origin(extra, "vae", str(vae_run))
    files = {
        "sit.safetensors": _write(out / "sit.safetensors", own["sit"]),
        "vae.safetensors": _write(out / "vae.safetensors", own.get("vae", vae_state(vae))),
        "encoder.safetensors": _write(out / "encoder.safetensors", vit_state(encoder)),
    }
    encoder_config, vae_config = load_config(f"{encoder_run}/config.yaml"), load_config(f"{vae_run}/config.yaml")
    described = {
        "tile_size_px": SiTConfig.model_validate(extra["network"]).latent_size
        * VAEConfig.model_validate(vae_config.network).factor,
        "resolution_mpp": MPP,
        "sit": extra["network"],
        "vae": vae_config.network,
        "encoder": dict(encoder_config.network),
        "files": files,
        "training": {
            "runs": {
                "encoder": _ran(encoder_config, encoder_step),
                "vae": _ran(vae_config, vae_step),
                "sit": _ran(config, step),
            }
        },
    }
    return described, {"encoder": _hours(encoder_run), "vae": _hours(vae_run)}


def _check_origin(extra: dict[str, Any], part: str, run: str) -> None:
    """InputError where the run that this one built on is not at the weights that it was at then."""
    step, path = checkpoint.average_file(run)
    noted = extra.get(f"{part}_sha256")  # runs of before it was noted are known by steps alone
    if step != extra[f"{part}_step"] or noted not in (None, sha256_of(path)):
        raise InputError(
            f"{part}_run: {run}: the run was trained on its step {extra[f'{part}_step']:,}; it has moved on or was trained anew since"
        )


def _of_base(
    config: TrainConfig,
    extra: dict[str, Any],
    step: int,
    own: dict[str, dict[str, Tensor]],
    out: Path,
    half: bool,
) -> tuple[dict[str, Any], dict[str, float]]:
    assert config.base is not None
    base = open_base(config.base)
    if not isinstance(base, ModelFolder) or base.sha256 != extra["base"]["sha256"]:
        raise InputError(
            f"{config.base.name}: is another model than the run went on from ({extra['base']['sha256'][:12]})"
        )
    base.check_files()
    encoding = conditioned(config)
    if encoding:
        encoder_step, encoder = _average(Path(encoding))
        _check_origin(extra, "encoder", encoding)
    if config.finetune.lora is not None:
        own = {**own, "sit": merged(own["sit"], config.finetune.lora.scale)}
    files = {}
    for part, state in own.items():
        name = f"{part}.safetensors"
        with safe_open(base.path / name, framework="pt") as weights:
            kinds = {weights.get_tensor(key).dtype for key in weights.keys()}  # noqa: SIM118 - not a mapping
        # What a gentle run has changed is less than float16 can tell apart near the base's weights.
        files[name] = _write(out / name, state, torch.float16 if half and torch.float32 not in kinds else torch.float32)
    for name in base.config["files"]:
        if name not in files:
            shutil.copyfile(base.path / name, out / name)
            files[name] = base.config["files"][name]
    kept = ("tile_size_px", "resolution_mpp", "sit", "vae", "encoder", "domain", "imported")
    described = {key: base.config[key] for key in kept if key in base.config}
    described["sit"] = described["sit"] | extra.get("sit", {})
    runs, hours = {"vae" if config.mode == "vae" else "sit": _ran(config, step)}, {}
    if encoding:
        taught = load_config(f"{encoding}/config.yaml")
        files["encoder.safetensors"] = _write(out / "encoder.safetensors", vit_state(encoder))
        described["encoder"] = dict(taught.network)
        described["sit"] = described["sit"] | extra["condition"]
        runs["encoder"] = _ran(taught, encoder_step)
        hours["encoder"] = _hours(Path(encoding))
    before = {**extra["base"], "training": base.config.get("training")}  # the whole line of ancestors
    training = {
        "runs": runs,
        "base": before,
        "learns": extra["learns"],
        **({"guide": extra["guide"]} if "guide" in extra else {}),
    }
    return {**described, "files": files, "training": training}, hours
