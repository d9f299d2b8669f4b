"""The screen `nearest_real`: tiles nearer to the bank than other patients' real tiles are, are drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from running import run
from tinymodel import make_bank_file

from synthfactory.embeddings.vectors import unit
from synthfactory.model.find import find_encoder, find_model
from synthfactory.model.weights import load_encoder
from synthfactory.screen.nearest import Nearest
from synthfactory.shards.reader import iter_tiles
from synthfactory.spec.model import model_named

MakeSpec = Callable[..., Path]


@pytest.fixture
def holdout(tiny: Path, tmp_path: Path) -> Path:
    """Other patients, in one class of another name."""
    return make_bank_file(tmp_path / "holdout.parquet", tiny / "model", {"others": 100}, seed=3)


def test_what_is_too_near_is_dropped_and_drawn_again(
    spec_file: MakeSpec, tiny: Path, holdout: Path, tmp_path: Path
) -> None:
    screen = {"nearest_real": {"holdout": str(holdout), "percentile": 50}}
    spec = spec_file(screen=screen, budget={"max_attempts": 3}, execution={"batch_size": 4, "threads": 1})
    ended = run("build", spec, "--local")
    assert ended.code in (0, 3), ended.err
    assert run("verify", tmp_path / "out").code == 0
    bank = np.stack(pq.read_table(tiny / "bank.parquet")["embedding"].to_pylist()).astype(np.float64)
    others = np.stack(pq.read_table(holdout)["embedding"].to_pylist()).astype(np.float64)
    threshold = np.percentile((unit(others) @ unit(bank).T).max(axis=1), 50)
    files = sorted((tmp_path / "lineage/units").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    scores = {(row["key"], row["attempt"]): json.loads(row["scores"])["nearest_real"] for row in rows}
    for row in rows:
        assert row["accepted"] == (scores[row["key"], row["attempt"]] <= threshold + 1e-6)
        assert row["reasons"] == ([] if row["accepted"] else ["too near a real tile"])
    model = find_model(model_named(str(tiny / "model")))
    encoder = load_encoder(find_encoder(model_named(str(tiny / "model")), model))
    kept = {row["key"]: scores[row["key"], row["attempt"]] for row in rows if row["accepted"]}
    for key, image, _ in iter_tiles(str(tmp_path / "out")):
        seen = unit(np.asarray(encoder.embed(image[None])))
        assert float((seen @ unit(bank).T).max()) == pytest.approx(kept[key], abs=1e-4)
    says = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())["recipe"]["screen"]["nearest_real"]
    assert says == {"percentile": 50, "holdout": "in lineage"}
    assert "nearest_real" in (tmp_path / "out/README.md").read_text().replace("\\", "")
    again = run("build", spec, "--local")
    assert "nothing to draw" in again.err


def test_both_outcomes_occur() -> None:
    """A screen whose threshold lies between: the copy goes, the stranger stays, and what is no number is no number."""
    random = np.random.default_rng(0)
    bank = random.standard_normal((50, 8)).astype(np.float32)
    made = Nearest(unit(bank), 0.99)
    made = Nearest.from_bytes(made.to_bytes())
    found = made.cosine(np.stack([3 * bank[7], -bank[7], np.zeros(8), np.full(8, np.nan)]).astype(np.float32))
    assert found[0] == pytest.approx(1.0, abs=1e-6) and found[0] > made.threshold > found[1]
    assert np.isnan(found[2:]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"percentile": 99.9}, "has 300 rows; percentile 99.9 needs 2,000"),
        ({"holdout": "nowhere.parquet"}, "nowhere.parquet"),
        ({"percentile": 30}, "30 is too small"),
    ],
)
def test_what_sets_no_threshold_is_refused_by_plan(
    spec_file: MakeSpec, holdout: Path, change: dict[str, Any], message: str
) -> None:
    refused = run("plan", spec_file(screen={"nearest_real": {"holdout": str(holdout), "percentile": 90, **change}}))
    assert refused.code == 2
    assert "screen.nearest_real" in refused.err and message in refused.err and "Traceback" not in refused.err


def test_the_threshold_must_come_from_other_patients(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    own = make_bank_file(tmp_path / "own.parquet", tiny / "model", {"alpha": 90})
    refused = run("plan", spec_file(screen={"nearest_real": {"holdout": str(own), "percentile": 90}}))
    assert refused.code == 2
    assert "shares 4 patients with the bank" in refused.err
