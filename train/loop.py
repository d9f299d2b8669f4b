"""The training loop: the same command starts a run, resumes it after any interruption, and does nothing once it is done."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
import yaml
from torch import nn
from tqdm import tqdm

from synthfactory.spec.errors import InputError
from train import checkpoint
from train.config import Optimiser, TrainConfig
from train.data import open_tiles
from train.ema import Ema
from train.step import step_for


def rate_at(optimiser: Optimiser, step: int) -> float:
    """Learning rate of a 0-based step: linear warm-up, then constant or a cosine to 2 % of the rate."""
    if step < optimiser.warmup:
        return optimiser.rate * (step + 1) / optimiser.warmup
    if optimiser.schedule == "constant":
        return optimiser.rate
    done = (step - optimiser.warmup) / max(1, optimiser.steps - optimiser.warmup)
    return optimiser.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _claim(config: TrainConfig, run: Path) -> None:
    """Writes RUN/config.yaml, or refuses a run that was begun with another config (resuming it would mix two recipes)."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.yaml"
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=True)
    if not path.exists():
        path.write_text(text)
        return
    before = yaml.safe_load(path.read_text())
    now = yaml.safe_load(text)
    changed = sorted(key for key in now if now[key] != before.get(key) and key not in ("threads", "log_every"))
    if changed:
        raise InputError(f"{run}: was begun with another config ({', '.join(changed)} differ); use another run folder")


def train(config: TrainConfig, run: Path, cache: Path) -> int:
    """Trains until `optimiser.steps`; returns the number of steps done by this call.

    Raises InputError for a run folder of another config, FloatingPointError where the loss is no longer finite.
    """
    _claim(config, run)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor costs a quarter of a step; nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    cache.mkdir(parents=True, exist_ok=True)
    tiles = open_tiles(config.data.shards, cache)
    work = step_for(config, tiles, cache)
    plan = config.optimiser
    trained = [parameter for parameter in work.module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=plan.rate, betas=plan.betas, weight_decay=plan.weight_decay)
    ema = Ema(work.module, plan.ema)
    first = checkpoint.restore(run, work.module, ema.state, optimiser)
    (run / "extra.json").write_text(
        json.dumps(
            {**work.extra(), "tiles": len(tiles), "classes": tiles.classes, "data_sha256": tiles.digest}, indent=1
        )
    )
    bar = tqdm(range(first, plan.steps), initial=first, total=plan.steps, desc=config.mode, mininterval=5.0)
    began, busy = time.monotonic(), _seconds_before(run)
    work.module.train()
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = rate_at(plan, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss, figures = work.loss(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"step {step}: the loss is {loss.item()}; last good checkpoint: {checkpoint.steps(run)[-1:]}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        figures["gradient_norm"] = float(nn.utils.clip_grad_norm_(trained, plan.clip))
        optimiser.step()
        ema.update(work.module, step)
        seconds = busy + time.monotonic() - began
        if (step + 1) % config.log_every == 0 or step + 1 == plan.steps:
            line = {"step": step + 1, "loss": loss.item(), "rate": rate_at(plan, step), "seconds": seconds, **figures}
            with open(run / "metrics.jsonl", "a") as log:
                log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == plan.steps:
            checkpoint.save(run, step + 1, work.module, ema.state, optimiser)
    return max(0, plan.steps - first)


def _seconds_before(run: Path) -> float:
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0.0
    lines = path.read_text().splitlines()
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0
