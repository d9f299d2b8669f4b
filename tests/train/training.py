"""Small tars and configs to train with."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from train import checkpoint
from train.config import Data, TrainConfig
from train.loop import train

SIDE = 24


def image_of(number: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def write_tar(
    path: Path, numbers: range, record: Callable[[int], dict[str, Any]], side: Callable[[int], int] = lambda n: SIDE
) -> Path:
    """Tiles `numbers`, each with the JSON that `record` gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            picture = io.BytesIO()
            Image.fromarray(image_of(number, side(number))).save(picture, "PNG", compress_level=0)
            for extension, data in (("png", picture.getvalue()), ("json", json.dumps(record(number)).encode())):
                member = tarfile.TarInfo(f"tile-{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def plain(number: int) -> dict[str, Any]:
    """Three classes, four patients of each."""
    return {"label": "abc"[number % 3], "patient_id": f"p-{'abc'[number % 3]}-{number // 3 % 4}"}


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def cut_off(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, run: Path, cache: Path, after: int = 1) -> None:
    """Trains until `after` checkpoints have been written, and stops there as an interruption would."""
    real, saves = checkpoint.save, []

    def dies(*arguments: Any, **named: Any) -> Any:
        saves.append(real(*arguments, **named))
        if len(saves) == after:
            raise KeyboardInterrupt
        return saves[-1]

    with monkeypatch.context() as patched:
        patched.setattr("train.loop.checkpoint.save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(config, run, cache)


def same_averages(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same averaged weights, bit for bit."""
    first, second = (load_file(checkpoint.average_file(run)[1]) for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def off_by(one: Path, other: Path) -> float:
    """How far two runs' weights and averages ended from each other, over the way that the first went since its first checkpoint."""
    first, last, of_other = (
        sorted((run / "checkpoints").iterdir())[at] for run, at in ((one, 0), (one, -1), (other, -1))
    )
    names = sorted(path.name for path in last.glob("*.safetensors") if path.name != "optimiser.safetensors")
    assert names == sorted(path.name for path in of_other.glob("*.safetensors") if path.name != "optimiser.safetensors")
    off, way = list[torch.Tensor](), list[torch.Tensor]()
    for name in names:
        before, after, apart = (load_file(step / name) for step in (first, last, of_other))
        assert after.keys() == apart.keys()
        for key, value in after.items():
            off.append((value - apart[key]).double().flatten())
            way.append((value - before[key]).double().flatten())
    return float(torch.cat(off).norm() / torch.cat(way).norm())


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch would compile runs as it is written."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: None)


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step_class: Any, step: int) -> list[int]:
    """Makes the loss of one step NaN; the steps whose loss is asked for are noted in what is returned."""
    real, seen = step_class.loss, list[int]()

    def broken(self: Any, batch: Any) -> Any:
        seen.append(batch.step)
        loss, figures = real(self, batch)
        return (loss * float("nan") if batch.step == step else loss), figures

    monkeypatch.setattr(step_class, "loss", broken)
    return seen


def install_lpips(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the package of that name, by squares; what its network is asked for is noted in what is returned."""
    asked: list[dict[str, Any]] = []

    class LPIPS(torch.nn.Module):
        """The package's interface: lpips.LPIPS(net=...)(a, b) -> (B, 1, 1, 1), tiles in [-1, 1]."""

        def __init__(self, **named: Any) -> None:
            super().__init__()
            asked.append(named)

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    return asked


def data_of(shards: Any, **more: Any) -> Data:
    """The data of a config: one place, or several sets."""
    return Data.model_validate({"shards": shards if isinstance(shards, list) else str(shards), **more})
