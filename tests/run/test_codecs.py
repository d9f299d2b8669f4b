"""The study of codecs: what is said of one side does not depend on what another was saved as."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.run import codecs
from synthfactory.run.codecs import Pool, codec_study
from synthfactory.run.evaluating import Sides
from synthfactory.run.spaces import Item, Kept, Space

DRAWN = 200  # of the first pixel: how the stand-in of a codec knows a drawn tile


def images(count: int, seed: int, first: int) -> np.ndarray:
    found = np.random.default_rng(seed).integers(60, 180, (count, 8, 8, 3), dtype=np.uint8)
    found[:, 0, 0] = first
    return found


def embed(tiles: np.ndarray) -> np.ndarray:
    """Means of six patches."""
    return tiles[:, 2:8].astype(np.float32).mean(axis=(2, 3))


def listed(tiles: np.ndarray) -> Iterator[Item]:
    return ((hashlib.sha256(tile.tobytes()).digest(), partial(np.asarray, tile)) for tile in tiles)


def study(kept: Path, monkeypatch: pytest.MonkeyPatch, *, drawn_too: bool, drawn_of: int = 40) -> dict[str, Any]:
    """JPEG makes real tiles a little brighter, and, where `drawn_too`, drawn ones very much."""

    def saved(tile: np.ndarray, codec: str) -> np.ndarray:
        is_drawn = tile[0, 0, 0] == DRAWN
        more = (70 if drawn_too else 0) if is_drawn else 4
        return np.asarray(np.clip(tile.astype(int) + more, 0, 255), np.uint8)

    monkeypatch.setattr(codecs, "saved_as", saved)
    real, drawn = images(80, 1, 0), images(40, 2, DRAWN)
    labels = np.full(80, "a")
    of_real = Tiles(embed(real), labels, np.char.add("R", (np.arange(80) // 2).astype(str)))
    of_drawn = Tiles(embed(drawn), labels[:40], np.char.add("D", (np.arange(40) % drawn_of).astype(str)))
    space = Space("means", "", "means", embed, True, "")
    pool = Pool({"means": Sides(of_drawn, of_real, of_real)}, [space], lambda: listed(drawn), lambda: listed(real))
    return codec_study(pool, ["jpeg50"], Kept(kept), lambda what, total: lambda count: None)["means"]


def test_figures_of_real_tiles_do_not_change_with_what_drawn_ones_are_saved_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(tmp_path / "one", monkeypatch, drawn_too=False)
    other = study(tmp_path / "other", monkeypatch, drawn_too=True)
    assert one["png"] == other["png"]
    assert one["jpeg50"]["real"] == other["jpeg50"]["real"]
    assert one["jpeg50"]["drawn"] == one["png"]["drawn"], "nothing was done to them"
    assert other["jpeg50"]["drawn"]["kernel"] > one["jpeg50"]["drawn"]["kernel"] + 1


def test_drawn_tiles_of_one_patient_give_a_reason_and_real_ones_their_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study(tmp_path, monkeypatch, drawn_too=False, drawn_of=1)["png"]
    assert found["drawn"]["kernel"] is None and "1 patient; 5 are needed" in found["drawn"]["why"]
    assert found["real"]["kernel"] is not None
