"""What a run would do, before it begins: tiles, patients, passes, parameters and the memory that they take. Nothing is trained or drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from synthfactory.model.folder import ModelFolder
from synthfactory.model.formats import slow_format
from synthfactory.model.sit import sit_from_dict
from synthfactory.model.vae import VAEConfig, vae_from_dict
from synthfactory.model.vit import ViT, ViTConfig, parameter_count, vit_from_dict
from synthfactory.model.weights import default_device
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted, shown
from train.base import open_base
from train.claim import check_new
from train.config import TrainConfig
from train.deeper import check_gates, deeper_config
from train.discriminator import PatchDiscriminator
from train.guided import guide_folder
from train.lean import why_no_copies
from train.lora import adapt
from train.metrics import check_board
from train.muon import is_hidden
from train.objectives import Adversarial
from train.parts import chosen_weights, config_of
from train.sampler import Order
from train.samples import MAX_CLASSES
from train.shardset import Reader
from train.sizes import (
    check_compared,
    check_condition,
    check_crop,
    check_discriminator,
    check_factor,
    check_fit,
    check_grid,
    check_projector,
    check_redrawn,
    check_tiles,
)
from train.split import Split, split
from train.taught import flattering

MB = 1e6
DRAWS = {"diffusion", "finetune", "repa-e"}  # modes whose networks draw tiles
MOST_NAMED = 12  # patients that are held out


def plan(config: TrainConfig, cache: Path) -> list[str]:
    """Lines of at most 80 columns, but for long names. InputError for whatever `run` would refuse of data, base and sizes."""
    check_new(config)
    if config.tensorboard:
        check_board()
    divided = split(config.data, cache)
    size_px = len(Reader(divided.index).image(int(divided.train[0])))
    return [
        *_data(divided),
        "",
        *_work(config, divided),
        "",
        *_networks(config, size_px, divided.index.grid.shape[1]),
        *(f"warning: {text}" for text in unwise(config, divided, default_device())),
    ]


def unwise(config: TrainConfig, divided: Split, device: torch.device) -> list[str]:
    """What is allowed, but should be known before a run begins."""
    slow = slow_format(config.precision, device)
    noted = [*divided.warnings, *flattering(config, divided), *_numbers(config, divided), *_unused(config)]
    return [*noted, f"precision: {slow}; write float32"] if slow else noted


def _numbers(config: TrainConfig, divided: Split) -> Iterator[str]:
    """Numbers that do not go together."""
    plan, index = config.optimiser, divided.index
    if plan.warmup > plan.steps:
        yield f"optimiser.warmup: {plan.warmup:,} steps of {plan.steps:,}: the rate never gets to its height"
    if plan.batch > len(divided.train):
        yield f"optimiser.batch: {plan.batch:,} of {counted(len(divided.train), 'tile')}: a batch holds the same tile more than once"
    judged = np.bincount(index.labels[divided.validation], minlength=len(index.classes))
    unlooked = [name for name, count in zip(index.classes, judged, strict=True) if not count]
    if config.samples and config.mode in DRAWS and len(index.classes) > MAX_CLASSES:
        yield f"samples: sheets show the first {MAX_CLASSES} of {len(index.classes)} classes"
    if len(divided.validation) and unlooked:
        yield f"data.validation: no tile of {', '.join(map(shown, unlooked[:3]))}{' and others' if len(unlooked) > 3 else ''} is held out"


def _unused(config: TrainConfig) -> Iterator[str]:
    """What is not as it is by default, and nothing reads."""
    modes = {
        "encoder": {"encoder"}, "vae": {"vae"}, "diffusion": DRAWS, "repa_e": {"repa-e"}, "encoder_run": {"vae", *DRAWS},
        "samples": DRAWS,
    }  # fmt: skip
    used = {name: config.mode in of for name, of in modes.items()}
    used |= {"finetune": config.base is not None, "vae_run": config.base is None and config.mode in DRAWS}
    for name, is_read in used.items():
        if is_read or getattr(config, name) in (TrainConfig.model_fields[name].default, None):
            continue
        how = " without a base" if name == "finetune" and config.mode in ("vae", "repa-e") else ""
        how = " with a base" if name == "vae_run" and config.mode in DRAWS else how
        yield f"{name}: mode {config.mode}{how} does not read it"
    compares = config.vae.perceptual and config.vae.features == "encoder"
    if config.mode == "vae" and config.encoder_run is not None and not compares:
        yield "encoder_run: mode vae reads it where vae.perceptual compares the encoder's features"
    why = why_no_copies(config)
    if config.lean and why is not None:
        yield f"lean: {why} leaves products without bfloat16 copies of the weights; what flows between blocks is bfloat16"


def _data(divided: Split) -> Iterator[str]:
    index, longest = divided.index, max(len(name) for name in divided.index.classes)
    yield f"{'class':<{max(longest, 5)}} {'tiles':>9} {'synthetic':>9} {'patients':>8} {'unknown':>9} {'validation':>10}"
    for number, name in enumerate(index.classes):
        rows = divided.train[index.labels[divided.train] == number]
        known = index.patients[rows]
        held = int((index.labels[divided.validation] == number).sum())
        unknown = int(((known < 0) & ~index.synthetic[rows]).sum())
        yield (
            f"{name:<{max(longest, 5)}} {len(rows):>9,} {int(index.synthetic[rows].sum()):>9,} {len(np.unique(known[known >= 0])):>8,} "
            f"{unknown:>9,} {held:>10,}"
        )
    judged = np.unique(index.patients[divided.validation])
    if names := [shown(index.patient_names[at]) for at in judged if at >= 0]:
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        text = f"held out    {counted(len(names), 'patient')}: {', '.join(names[:MOST_NAMED])}{more}"
        yield from textwrap.wrap(text, 80, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)


def _work(config: TrainConfig, divided: Split) -> Iterator[str]:
    plan, index = config.optimiser, divided.index
    labels = index.labels[divided.train]
    order = Order(config.seed, divided.train, labels, divided.weights(config.data), config.data.sampling)
    passes = plan.steps * plan.batch / order.pass_length
    yield f"mode        {config.mode}, {config.precision}{', lean' if config.lean else ''}"
    yield f"steps       {plan.steps:,} of {plan.batch} tiles: {plan.steps * plan.batch:,}, {passes:.3g} passes ({config.data.sampling})"
    parts = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    yield f"rate        {plan.rate:g}, {plan.schedule}, {plan.warmup:,} steps of warm-up; batches{parts or ' whole'}"
    yield f"averages    {', '.join(f'{decay:g}' for decay in plan.ema)}"
    yield f"checkpoints every {config.checkpoint_every:,} steps; the last {config.keep_last} stay" + (
        f", and every {config.keep_every:,}th step's" if config.keep_every else ""
    )


def _networks(config: TrainConfig, size_px: int, cells: int) -> Iterator[str]:
    """Parameters, and what weights, gradients, optimiser and averages take: activations come on top, and grow with the batch."""
    parts = dict(_parts(config, size_px, cells))
    size = 8 if config.precision == "float64" else 4
    total = 0
    for name, (module, learns) in parts.items():
        learning = [(of, w) for of, w in module.named_parameters() if w.requires_grad and learns]
        count, learnt = parameter_count(module), sum(w.numel() for _, w in learning)
        spared = sum(w.numel() for of, w in learning if config.optimiser.kind == "muon" and is_hidden(of, w))
        # A gradient and two moments of each weight; Muon has one.
        total += size * (count + 3 * learnt - spared + (len(config.optimiser.ema) * count if learns else 0))
        yield f"{name:<11} {count / MB:.2f}M parameters, {learnt / MB:.2f}M of them learn"
    yield f"memory      {total / MB:,.0f} MB: weights, gradients, optimiser, averages; no activations"


def _parts(config: TrainConfig, size_px: int, cells: int) -> Iterator[tuple[str, tuple[nn.Module, bool]]]:
    with torch.device("meta"):
        if config.mode == "encoder":
            check_tiles("network.image_size", ViTConfig.model_validate(config.network), size_px)
            check_grid(ViTConfig.model_validate(config.network), cells)
            yield "encoder", (vit_from_dict(config.network), True)
            return
        if config.mode == "vae":
            vae = vae_from_dict(config.network if config.base is None else _of_base(config)["vae"])
            check_crop(config.vae.crop, size_px)
            check_factor(config.vae.crop, vae.config.factor)
            if config.base is not None:
                chosen_weights(vae, config.finetune.parts)
            yield "vae", (vae, True)
            if config.vae.gan:
                check_discriminator("vae", config.vae.discriminator_layers, config.vae.crop, "a vae.crop")
                yield from _discriminator(config.vae)
            if config.vae.redrawn is not None:
                yield from _redrawing(config, size_px)
            if (compared := _compared(config)) is not None:
                check_compared(config.vae.crop, compared.config.patch_size, compared.config.image_size)
                yield "compared by", (compared, False)
            return
        sizes = _of_base(config) if config.base is not None else _of_runs(config)
        if config.base is None:
            found = VAEConfig.model_validate(sizes["vae"]), ViTConfig.model_validate(sizes["encoder"])
            check_fit(config.network, *found, size_px)
        sit = sit_from_dict(sizes["sit"])
        if config.base is not None:
            sit = sit_from_dict(deeper_config(sit.config, config.finetune.depth, config.base.name).model_dump())
            check_projector(config.mode, sit.config.projection_depth, config.base.name)
        if config.base is not None and config.finetune.lora is not None:
            adapt(sit, config.finetune.lora.targets, config.finetune.lora.rank, config.finetune.lora.scale, None)
        elif config.base is not None:
            chosen_weights(sit, config.finetune.parts)
            check_gates(sit, sizes["sit"]["depth"])
        yield "sit", (sit, True)
        yield "vae", (vae_from_dict(sizes["vae"]), config.mode == "repa-e")
        if config.mode == "repa-e":
            check_discriminator("repa_e", config.repa_e.discriminator_layers, size_px, "a tile of data.shards")
            yield from _discriminator(config.repa_e)
        if config.base is not None and config.encoder_run is not None:
            sizes["encoder"] = config_of(config.encoder_run, "encoder").network
            check_condition(config.encoder_run, sizes["encoder"]["width"], sit.config, config.base.name)
        if sizes["encoder"]:
            yield "encoder", (vit_from_dict(sizes["encoder"]), False)
        if config.finetune.guided is not None:
            yield "base's sit", (sit_from_dict(sizes["sit"]), False)
            yield "guide's sit", (_guide(config), False)


def _compared(config: TrainConfig) -> ViT | None:
    """The encoder whose features mode vae compares, if any."""
    if config.vae.perceptual == 0 or config.vae.features != "encoder":
        return None
    if config.encoder_run is not None:
        return vit_from_dict(config_of(config.encoder_run, "encoder").network)
    sizes = _of_base(config)["encoder"] if config.base is not None else {}
    return vit_from_dict(sizes) if sizes else None


def _guide(config: TrainConfig) -> nn.Module:
    """The weaker SiT; InputError where it cannot guide the base."""
    assert config.base is not None
    assert config.finetune.guided is not None
    base = open_base(config.base)
    assert isinstance(base, ModelFolder)
    return sit_from_dict(guide_folder(config.finetune.guided, base)[1].model_dump())


def _discriminator(wanted: Adversarial) -> Iterator[tuple[str, tuple[nn.Module, bool]]]:
    yield "critic", (PatchDiscriminator(wanted.discriminator_width, wanted.discriminator_layers), True)


def _redrawing(config: TrainConfig, size_px: int) -> Iterator[tuple[str, tuple[nn.Module, bool]]]:
    """What draws and compares beside the autoencoder that learns: all of the base, as it is."""
    assert config.base is not None
    sizes = _of_base(config)
    check_redrawn(config.vae.crop, size_px, encoder=bool(sizes["encoder"]) or config.base.encoder is not None)
    yield "base's sit", (sit_from_dict(sizes["sit"]), False)
    yield "base's vae", (vae_from_dict(sizes["vae"]), False)
    if sizes["encoder"]:
        yield "encoder", (vit_from_dict(sizes["encoder"]), False)


def _of_base(config: TrainConfig) -> dict[str, dict[str, Any]]:
    assert config.base is not None
    folder = open_base(config.base)
    if not isinstance(folder, ModelFolder):
        raise InputError(
            f"base: {config.base.name}: is run by its own pipeline; convert a copy with `synthfactory model import`"
        )
    found = {part: {k: v for k, v in folder.config[part].items() if k != "id"} for part in ("sit", "vae", "encoder")}
    return found if folder.has_encoder else {**found, "encoder": {}}


def _of_runs(config: TrainConfig) -> dict[str, dict[str, Any]]:
    named = (("encoder", config.encoder_run), ("vae", config.vae_run))
    found: dict[str, dict[str, Any]] = {part: config_of(str(run), part).network for part, run in named}
    width = found["encoder"]["width"]
    sit = {**config.network, "condition_width": width, "projection_width": width}
    return {**found, "sit": sit}
