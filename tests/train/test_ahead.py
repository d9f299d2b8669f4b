"""What a GPU does otherwise, by stand-ins: a step is begun before the last one is looked at, and a graph takes numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_making import config, make_base
from training import spoil_loss

from train.config import load_config
from train.loop import train
from train.place import Rows
from train.step import DiffusionStep
from train.watch import DivergedError

KEPT = {"alignment": 0, "features": "cache"}


def test_no_sheet_is_drawn_of_a_step_that_was_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, DiffusionStep, 2)
    monkeypatch.setattr("train.loop.AHEAD", {"cpu": 1})
    samples = {"every": 1, "tiles": 1, "steps": 1}
    path = config(tmp_path, make_base(tmp_path), samples=samples, checkpoint_every=100, log_every=100)
    with pytest.raises(DivergedError, match="step 2: the loss is nan"):
        train(load_config(path), tmp_path / "run", tmp_path / "cache")
    assert sorted(sheet.name for sheet in (tmp_path / "run" / "samples").iterdir()) == ["000001.png", "000002.png"]


@pytest.mark.parametrize(
    ("there", "alone"), [({"latents", "tokens"}, True), ({"latents"}, False), ({"tokens"}, False), (set(), False)]
)
def test_a_graph_is_made_where_all_that_is_kept_lies_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: set[str], alone: bool
) -> None:
    def at_hand(rows: Rows) -> bool:
        return ("latents" if rows.array.ndim == 5 else "tokens") in there

    monkeypatch.setattr(Rows, "at_hand", property(at_hand))
    found = []
    real = DiffusionStep.__init__

    def noted(self: DiffusionStep, *given: Any) -> None:
        real(self, *given)
        found.append(self.by_number)

    monkeypatch.setattr(DiffusionStep, "__init__", noted)
    path = config(tmp_path, make_base(tmp_path), diffusion=KEPT, samples=None)
    train(load_config(path), tmp_path / "run", tmp_path / "cache")
    assert found == [alone]
