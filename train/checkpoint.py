"""Checkpoints: one folder per step, safetensors + JSON, that appears whole or not at all.

RUN/checkpoints/000400/{weights,average,optimiser}.safetensors, state.json. Written under a temporary name, synced, renamed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from synthfactory.spec.errors import InputError


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flat_optimiser(optimiser: optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, scalars = {}, {}
    for number, values in optimiser.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{number}.{name}"] = value
    return tensors, scalars


def save(
    run: Path, step: int, module: nn.Module, average: dict[str, Tensor], optimiser: optim.Optimizer, keep: int = 2
) -> Path:
    """Writes the checkpoint after `step` steps and removes all but the last `keep`; returns its folder."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{step:06d}"
    temporary = folder / f".tmp-{secrets.token_hex(6)}"
    temporary.mkdir()
    tensors, scalars = _flat_optimiser(optimiser)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, temporary / "weights.safetensors"
    )
    save_file({k: v.cpu().contiguous() for k, v in average.items()}, temporary / "average.safetensors")
    save_file(tensors, temporary / "optimiser.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, "optimiser": scalars}, sort_keys=True))
    for path in temporary.iterdir():
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    for old in steps(run)[:-keep]:
        shutil.rmtree(folder / f"{old:06d}")
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale)
    return final


def steps(run: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def restore(run: Path, module: nn.Module, average: dict[str, Tensor], optimiser: optim.Optimizer) -> int:
    """Loads the last checkpoint into the given objects, in place; returns its step, or 0 where there is none."""
    found = steps(run)
    if not found:
        return 0
    folder = run / "checkpoints" / f"{found[-1]:06d}"
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    for name, value in load_file(folder / "average.safetensors").items():
        average[name].copy_(value)
    state = json.loads((folder / "state.json").read_text())
    entries: dict[int, dict[str, Any]] = {}
    flat = {**state["optimiser"], **load_file(folder / "optimiser.safetensors")}
    for name, value in flat.items():
        number, _, field = name.partition(".")
        entries.setdefault(int(number), {})[field] = value
    whole = optimiser.state_dict()
    optimiser.load_state_dict({"state": entries, "param_groups": whole["param_groups"]})
    return int(state["step"])


def load_average(run: str | Path, module: nn.Module) -> int:
    """Loads the averaged weights of a run's last checkpoint into `module`; returns the step. InputError where there is none."""
    found = steps(Path(run))
    if not found:
        raise InputError(f"{run}: holds no checkpoint; train it first with synthfactory-train run")
    module.load_state_dict(load_file(Path(run) / "checkpoints" / f"{found[-1]:06d}" / "average.safetensors"))
    return found[-1]
