"""Nearest neighbours against brute force, and copies at distance 0."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate import neighbours
from synthfactory.evaluate.neighbours import nearest, unit


@pytest.mark.parametrize("by", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_block_by_block_is_brute_force(monkeypatch: pytest.MonkeyPatch, by: str, k: int) -> None:
    monkeypatch.setattr(neighbours, "QUERIES", 13)
    monkeypatch.setattr(neighbours, "REFERENCES", 5)
    random = np.random.default_rng(k)
    queries, references = random.standard_normal((40, 6)), random.standard_normal((33, 6))
    done: list[int] = []
    rows, distances = nearest(queries, references, k, by=by, tick=done.append)  # type: ignore[arg-type]
    a, b = (unit(queries), unit(references)) if by == "cosine" else (queries, references)
    whole = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(2)
    whole = whole / 2 if by == "cosine" else np.sqrt(whole)
    assert np.array_equal(rows, whole.argsort(1, kind="stable")[:, :k])
    assert distances == pytest.approx(np.sort(whole, 1)[:, :k], abs=1e-5)
    assert done[-1] == 40


def test_copies_are_at_zero_and_equal_ones_come_by_row() -> None:
    random = np.random.default_rng(0)
    references = random.standard_normal((500, 32)).astype(np.float32) * 100 + 1000
    references[300] = references[20]
    rows, distances = nearest(references[[20, 7]], references, 2, by="euclidean")
    assert rows[0].tolist() == [20, 300]
    assert distances[0].tolist() == [0.0, 0.0]
    assert (rows[1, 0], distances[1, 0]) == (7, 0.0)


def test_what_cannot_be_compared_is_refused() -> None:
    good = np.zeros((3, 4))
    for queries, references, k in ((good, good, 4), (good, np.zeros((3, 5)), 1), (good, good, 0)):
        with pytest.raises(ValueError, match="cannot be found"):
            nearest(queries, references, k)
    with pytest.raises(ValueError, match="not finite"):
        nearest(good, np.full((3, 4), np.nan))
