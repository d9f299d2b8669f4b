"""Checkpoints: one folder per step, safetensors + JSON, that appears whole or not at all.

RUN/checkpoints/000400/{weights,average,optimiser}.safetensors, state.json, and average-<decay>.safetensors of further averages. Written
under a temporary name, synced, renamed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from synthfactory.model.tensors import read_tensors, write_tensors
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from train.ema import Ema

_EARLIER = (
    "remove the folder that it lies in, and the same command goes on from the checkpoint before, or from the start"
)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the last ones, and for good those at multiples of `every` steps."""

    last: int = 2
    every: int | None = None


def average_name(decay: float, first: bool) -> str:
    """File name of an average in a checkpoint."""
    return "average.safetensors" if first else f"average-{decay:g}.safetensors"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flat(optimisers: Mapping[str, optim.Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Their state as PHASE/NUMBER.FIELD -> tensor or number."""
    tensors, scalars = {}, {}
    for phase, optimiser in optimisers.items():
        for number, values in optimiser.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{phase}/{number}.{name}"] = value.detach().cpu().contiguous()
                else:
                    scalars[f"{phase}/{number}.{name}"] = value
    return tensors, scalars


def save(
    run: Path,
    step: int,
    module: nn.Module,
    averages: Sequence[Ema],
    optimisers: Mapping[str, optim.Optimizer],
    *,
    keep: Keep = Keep(),
    also: dict[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint after `step` steps, with what else the loop wants back (`also`, JSON); returns its folder.

    Where it cannot be written (a full disk), nothing of it stays and the checkpoint before is untouched.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"{step:06d}", folder / f".tmp-{secrets.token_hex(6)}"
    try:
        temporary.mkdir()
        _write(temporary, step, module, averages, optimisers, also or {})
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)
    kept = steps(run)
    for old in kept[: -keep.last]:
        if keep.every is None or old % keep.every:
            shutil.rmtree(folder / f"{old:06d}")
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale)
    return final


def _write(
    folder: Path,
    step: int,
    module: nn.Module,
    averages: Sequence[Ema],
    optimisers: Mapping[str, optim.Optimizer],
    also: dict[str, Any],
) -> None:
    tensors, scalars = _flat(optimisers)
    weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    write_tensors(weights, folder / "weights.safetensors")
    for number, ema in enumerate(averages):
        name = average_name(ema.decay, number == 0)
        write_tensors({k: v.cpu().contiguous() for k, v in ema.state.items()}, folder / name)
    write_tensors(tensors, folder / "optimiser.safetensors")
    state = {"step": step, "optimiser": scalars, "also": also}
    (folder / "state.json").write_text(json.dumps(state, sort_keys=True))
    for path in folder.iterdir():
        _sync(path)


def steps(run: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending."""
    found = (path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())
    return sorted(int(path.name) for path in found if path.name.isdecimal())  # others are somebody's copies


def restore(
    run: Path, module: nn.Module, averages: Sequence[Ema], optimisers: Mapping[str, optim.Optimizer]
) -> tuple[int, dict[str, Any]]:
    """Loads the last checkpoint into the given objects, in place; returns its step and what the loop gave to keep, or (0, {}).

    InputError where a file of it is damaged.
    """
    found = steps(run)
    if not found:
        return 0, {}
    folder = run / "checkpoints" / f"{found[-1]:06d}"
    module.load_state_dict(read_tensors(folder / "weights.safetensors", _EARLIER))
    for number, ema in enumerate(averages):
        for name, value in read_tensors(folder / average_name(ema.decay, number == 0), _EARLIER).items():
            ema.state[name].copy_(value)
    try:
        state = read_json((folder / "state.json").read_text())
        int(state["step"]), dict(state["optimiser"])
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{folder}/state.json: is missing or damaged; {_EARLIER}") from None
    entries: dict[str, dict[int, dict[str, Any]]] = {phase: {} for phase in optimisers}
    flat = {**state["optimiser"], **read_tensors(folder / "optimiser.safetensors", _EARLIER)}
    for name, value in flat.items():
        phase, _, rest = name.rpartition("/")
        number_of, _, field = rest.partition(".")
        entries[phase].setdefault(int(number_of), {})[field] = value
    for phase, optimiser in optimisers.items():
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": entries[phase], "param_groups": groups})
    return int(state["step"]), dict(state.get("also", {}))


def average_file(run: str | Path, decay: float | None = None) -> tuple[int, Path]:
    """(step, file) of the averaged weights in a run's last checkpoint: the first average, or that of `decay`.

    InputError where there is none.
    """
    found = steps(Path(run))
    if not found:
        raise InputError(f"{run}: holds no checkpoint; train it first with synthfactory-train run")
    folder = Path(run) / "checkpoints" / f"{found[-1]:06d}"
    path = folder / average_name(decay or 0.0, decay is None)
    if not path.exists():
        there = sorted(file.stem.partition("-")[2] for file in folder.glob("average-*"))
        more = f"{', '.join(there)} and " if there else ""
        raise InputError(
            f"{run}: has no average of decay {decay:g}; it has {more}that of the config's first, without --ema"
        )
    return found[-1], path
