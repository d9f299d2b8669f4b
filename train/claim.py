"""Whose a run folder is: one config's, from its first step to its last."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synthfactory.run.around import check_outside
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown
from train import checkpoint
from train.config import TrainConfig, config_text, load_config

CONFIG = "config.yaml"
FREE = (
    "threads",
    "tensorboard",
    "samples",
    "log_every",
    "graphs",
    "checkpoint_every",
    "keep_last",
    "keep_every",
)  # may change while a run goes on


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Keeps other processes off a run folder, made where there is none, while the block runs; the lock goes with the process, however it
    ends. InputError where another has it: two would write one log, and take away each other's checkpoints; and where RUN is no run folder.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; name a folder for the run")
    if run.is_dir() and not (run / CONFIG).exists():
        strange = sorted(each.name for each in run.iterdir() if not each.name.startswith("."))
        if strange:
            raise InputError(f"{run}: holds {shown(strange[0])} and is no run folder; name a new one")
    check_outside(run, "--run")
    run.parent.mkdir(parents=True, exist_ok=True)
    run.mkdir(mode=0o700, exist_ok=True)  # it says who was learnt from
    with open(run / ".lock", "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{run}: another process works on this run; wait for its end, or end it") from None
        except OSError:
            pass  # a file system that knows no locks
        yield


def check_new(config: TrainConfig) -> None:
    """InputError for what no run is begun with any more; those that were go on, and are exported."""
    if config.finetune.lora is not None and config.finetune.parts != ["*"]:
        raise InputError(
            "finetune.parts: would learn nothing beside lora, which fixes all weights and adds adapters; leave one of them out"
        )


def claim(config: TrainConfig, run: Path) -> None:
    """Writes RUN/config.yaml, or refuses a run that was begun with another config (resuming it would mix two recipes). A run without
    a checkpoint has nothing to resume: a config that failed at once may be mended. The run is `held`: another process's config stays.
    """
    path = run / CONFIG
    if not path.exists() or not checkpoint.steps(run):
        check_new(config)
        path.write_text(config_text(config))
        return
    before, now = load_config(str(path)).model_dump(mode="json"), config.model_dump(mode="json")
    differ = [text for name in sorted(now) if name not in FREE for text in _differ(name, before.get(name), now[name])]
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise InputError(
            f"{run}: was begun with another config ({', '.join(differ[:3])}{more}); use another run folder"
        )


def _differ(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from _differ(f"{path}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield f"{path}: was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kept_says(config: TrainConfig, run: Path) -> str:
    """What of an interrupted run is kept."""
    done = max(checkpoint.steps(run), default=0)
    return (
        f"{run}: {done:,} of {config.optimiser.steps:,} steps are kept (checkpoint_every: {config.checkpoint_every:,})"
    )
