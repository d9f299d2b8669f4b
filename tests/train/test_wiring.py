"""What a config asks for reaches the steps: the order, the augmentation, the format, the clipping; tokens that are kept say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tinymodel import make_tiny_model
from training import cut_off, image_of, plain, same_averages, write_tar, write_yaml

from synthfactory.model.vit import ViT
from synthfactory.spec.errors import InputError
from train import checkpoint, shardset, step
from train.config import load_config
from train.loader import Batch
from train.loop import train
from train.samples import Sheets
from train.step import DiffusionStep

SIDE = 32
OPTIMISER = {"steps": 4, "batch": 6, "rate": 1e-3, "warmup": 1, "ema": 0.0}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "0.tar", range(12), plain, side=lambda n: SIDE)
    make_tiny_model(tmp_path / "base", projection_depth=1)
    return tmp_path


def config(place: Path, **changes: Any) -> Any:
    values = {
        "mode": "finetune", "base": str(place / "base"), "data": {"shards": str(place / "tars")}, "threads": 1, "samples": None,
        "checkpoint_every": 2, "optimiser": OPTIMISER, **changes,
    }  # fmt: skip
    return load_config(str(write_yaml(place / "finetune.yaml", values)))


class Watched:
    """Batches that a run works on, and whether it computes under autocast."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        self.autocast: list[bool] = []
        real = DiffusionStep.loss

        def loss(step: DiffusionStep, batch: Batch) -> Any:
            self.batches.append(batch)
            self.autocast.append(torch.is_autocast_enabled("cpu"))
            return real(step, batch)

        monkeypatch.setattr(DiffusionStep, "loss", loss)

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([batch.rows for batch in self.batches])


def last_line(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]))


def weights_after(place: Path, name: str, **changes: Any) -> dict[str, torch.Tensor]:
    train(config(place, **changes), place / name, place / "cache")
    return load_file(checkpoint.average_file(place / name)[1])


def test_sampling_and_weights_decide_what_is_seen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(
        place / "more" / "0.tar", range(100, 120), lambda n: {"label": "a", "patient_id": f"q{n}"}, lambda n: SIDE
    )
    both = [{"shards": str(place / "tars")}, {"shards": str(place / "more")}]
    watched = Watched(monkeypatch)
    train(config(place, data={"shards": both, "sampling": "balanced"}), place / "balanced", place / "cache")
    label = np.asarray([0, 1, 2] * 4 + [0] * 20)
    assert np.bincount(label[watched.rows]).tolist() == [8, 8, 8]
    watched.batches.clear()
    both[1] |= {"weight": 0.1}
    train(config(place, data={"shards": both}), place / "weighted", place / "cache")
    assert (watched.rows >= 12).sum() in (3, 4)  # two of every fourteen


def test_augmentation_and_format_are_those_of_the_config(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    train(config(place), place / "turned", place / "cache")
    assert len(set(np.concatenate([batch.symmetries for batch in watched.batches]))) > 3
    assert not any(watched.autocast)
    watched.batches.clear()
    still = {"shards": str(place / "tars"), "symmetries": False}
    seen = {"features": "encode"}
    train(config(place, data=still, diffusion=seen, precision="bfloat16"), place / "still", place / "cache")
    assert all(watched.autocast[4:])
    for batch in watched.batches:
        for row, image in zip(batch.rows, batch.images, strict=True):
            assert np.array_equal(image, image_of(int(row), SIDE))


def test_clipping_holds_a_step_back(place: Path) -> None:
    first = load_file(place / "base" / "sit.safetensors")
    moved = {}
    for clip in (1.0, 1e-12):  # below Adam's epsilon, so that it shows
        after = weights_after(place, f"clip-{clip}", optimiser={**OPTIMISER, "clip": clip})
        moved[clip] = sum((after[name].float() - first[name].float()).abs().sum().item() for name in first)
    assert moved[1e-12] < 0.05 * moved[1.0]


def test_latents_are_turned_as_their_tile_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents that are the tile's own blocks still are, whatever the symmetry."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    current: list[Batch] = []
    real_loss, real_noised, real_latents = DiffusionStep.loss, step.noised, DiffusionStep._latents

    def latents_of(work: DiffusionStep, *given: Any) -> np.ndarray:
        found = real_latents(work, *given)
        side = found.shape[-1]
        grey = np.stack(
            [image_of(n, SIDE).mean(-1).reshape(side, SIDE // side, side, -1).mean((1, 3)) for n in range(12)]
        )
        own = np.broadcast_to(grey[:, None] / 255, found[:, 0].shape)
        return np.stack([own, np.zeros_like(own)], 1).astype(np.float16)

    def loss(work: DiffusionStep, batch: Batch) -> Any:
        current.append(batch)
        return real_loss(work, batch)

    def noised(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((latents[:, 0].numpy(), current[-1].images.mean(-1)))
        return real_noised(latents, *rest)

    monkeypatch.setattr(DiffusionStep, "_latents", latents_of)
    monkeypatch.setattr(DiffusionStep, "loss", loss)
    monkeypatch.setattr(step, "noised", noised)
    train(config(place), place / "run", place / "cache")
    assert len(seen) == 4
    for latents, images in seen:
        side = latents.shape[-1]
        blocks = images.reshape(len(images), side, SIDE // side, side, -1).mean((2, 4))
        for latent, block in zip(latents, blocks, strict=True):
            assert np.corrcoef(latent.ravel(), block.ravel())[0, 1] > 0.999


def test_kept_tokens_train_as_fresh_ones_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = ViT.forward

    def forward(self: ViT, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(ViT, "forward", forward)
    decoded: list[int] = []
    real_decode = shardset.decode_image

    def decode(data: bytes) -> np.ndarray:
        decoded.append(len(data))
        return real_decode(data)

    monkeypatch.setattr(shardset, "decode_image", decode)
    for alignment in (0.0, 0.5):
        losses = {"alignment": alignment}
        fresh = weights_after(place, f"fresh-{alignment}", diffusion={**losses, "features": "encode"})
        calls.clear()
        kept = weights_after(place, f"kept-{alignment}", diffusion={**losses, "features": "cache"})
        assert sum(calls) == 96  # each tile in each symmetry, once
        one, other = (last_line(place / f"{name}-{alignment}") for name in ("fresh", "kept"))
        assert one["flow"] == pytest.approx(other["flow"], rel=1e-3)
        assert one.get("alignment", 0) == pytest.approx(other.get("alignment", 0), rel=1e-3)
        if not alignment:  # patch tokens are kept in float16
            assert all(torch.allclose(fresh[name], kept[name], atol=2e-4) for name in fresh)
        calls.clear()
        decoded.clear()
        again = config(place, diffusion={**losses, "features": "cache"})
        cut_off(monkeypatch, again, place / f"cut-{alignment}", place / "cache")
        train(again, place / f"cut-{alignment}", place / "cache")
        assert same_averages(place / f"cut-{alignment}", place / f"kept-{alignment}")
        assert not calls
        assert len(decoded) == 2  # the first tile at each of the two starts, for its size


@pytest.mark.parametrize(
    "mode", ["finetune", "vae"]
)  # where latents are made first, and where batches are all that is read
def test_tiles_of_two_sizes_are_refused_by_name(place: Path, mode: str) -> None:
    write_tar(place / "tars" / "other.tar", range(12, 14), plain, side=lambda n: 2 * SIDE)
    asked = config(place) if mode == "finetune" else config(place, mode=mode, vae={"crop": SIDE, "perceptual": 0.0})
    with pytest.raises(InputError, match=r"other\.tar: a tile of .* among tiles of .*; all must have one size"):
        train(asked, place / "run", place / "cache")


def test_no_tile_is_decoded_that_nobody_asks_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = shardset.decode_image
    monkeypatch.setattr(shardset, "decode_image", lambda data: (decoded.append(0), real(data))[1])
    data = {"shards": str(place / "tars"), "validation": {"share": 0.25, "every": 2, "tiles": 3}}
    looks = 3  # at steps 0, 2 and 4, of three tiles, each with a first tile for the size
    for features, expected in (
        ("encode", 12 + 1 + 4 * 6 + looks * (1 + 3)),
        ("cache", 12 + 1 + looks),
    ):  # 12: latents, tokens
        losses = {"alignment": 0.0, "features": features}
        decoded.clear()
        train(config(place, data=data, diffusion=losses), place / f"run-{features}", place / "cache")
        assert len(decoded) == expected


def test_tokens_are_kept_by_themselves_where_it_pays(place: Path) -> None:
    long = {**OPTIMISER, "steps": 16}  # 96 tiles: each of 12 in each of 8 symmetries
    for name, optimiser, alignment in (("short", OPTIMISER, 0.0), ("aligned", long, 0.5), ("pays", long, 0.0)):
        cache = place / f"cache-{name}"
        train(config(place, optimiser=optimiser, diffusion={"alignment": alignment}), place / name, cache)
        assert any("tokens" in path.name for path in cache.iterdir()) == (name == "pays")


def test_sheets_show_the_same_conditions_and_noise_every_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[bytes] = []
    real = Sheets.write

    def twice(self: Sheets, model: Any, path: Path) -> None:
        for _ in range(2):
            real(self, model, path)
            sheets.append(path.read_bytes())

    monkeypatch.setattr(Sheets, "write", twice)
    train(config(place, samples={"every": 4, "tiles": 2, "steps": 2}), place / "run", place / "cache")
    assert len(sheets) == 2
    assert sheets[0] == sheets[1]
