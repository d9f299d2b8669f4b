"""The optimiser of a run, its rate over the steps, and what a batch must divide by."""

from __future__ import annotations

import math

import torch
from torch import nn

from synthfactory.spec.errors import InputError
from train.config import Optimiser, TrainConfig
from train.muon import Muon
from train.place import Phase


def rate_at(optimiser: Optimiser, step: int) -> float:
    """Learning rate of a 0-based step: linear warm-up, then constant or a cosine to 2 % of the rate."""
    if step < optimiser.warmup:
        return optimiser.rate * (step + 1) / optimiser.warmup
    if optimiser.schedule == "constant":
        return optimiser.rate
    done = (step - optimiser.warmup) / max(1, optimiser.steps - optimiser.warmup)
    return optimiser.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def check_workers(optimiser: Optimiser, workers: int) -> None:
    """InputError where a batch cannot be dealt to the workers evenly, or a worker's share not cut into equal parts: means would
    weigh some tiles more than others.
    """
    if optimiser.batch % workers:
        raise InputError(f"optimiser.batch: {optimiser.batch} does not divide by {workers} workers; choose a multiple")
    if optimiser.batch // workers % optimiser.accumulate:
        raise InputError(
            f"optimiser.accumulate: {optimiser.accumulate} parts do not divide the {optimiser.batch // workers} tiles that each of "
            f"{workers} workers takes of a batch; choose a batch that is a multiple of {workers * optimiser.accumulate}"
        )


def optimiser_of(config: TrainConfig, module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """Of the weights that an update moves."""
    plan = config.optimiser
    if plan.kind == "adamw":
        return torch.optim.AdamW(
            phase.weights, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
        )
    mine = {id(weight) for weight in phase.weights}
    named = [(name, weight) for name, weight in module.named_parameters() if id(weight) in mine]
    return Muon(named, plan.rate, plan.betas, plan.weight_decay, bfloat16=config.precision == "bfloat16")
