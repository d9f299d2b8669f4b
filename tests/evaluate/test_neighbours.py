"""Nearest neighbours against brute force, and copies at distance 0."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.embeddings.vectors import unit
from synthfactory.evaluate import neighbours
from synthfactory.evaluate.neighbours import Product, nearest


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


def test_pairs_of_one_number_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "REFERENCES", 16)
    monkeypatch.setattr(neighbours, "FIRST", 4)
    random = np.random.default_rng(1)
    x, numbers = random.standard_normal((60, 5)), np.arange(60) // 20
    rows, distances = nearest(x, x, 2, apart=(numbers, numbers))
    whole = ((unit(x)[:, None].astype(np.float64) - unit(x)[None]) ** 2).sum(2) / 2
    whole[numbers[:, None] == numbers[None]] = np.inf
    assert np.array_equal(rows, whole.argsort(1, kind="stable")[:, :2])
    assert (distances > 1e-6).all()
    _, alone = nearest(x, x, 2, apart=(np.zeros(60), np.zeros(60)))
    assert np.isinf(alone).all()


def test_a_coarse_product_is_made_up_for() -> None:
    """Products off by up to 30 %: what the bound cannot rule out is searched again, and the answer is that of exact ones."""
    random = np.random.default_rng(2)
    queries, references = random.standard_normal((50, 8)), random.standard_normal((400, 8))
    calls: list[int] = []

    def coarse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        calls.append(len(a))
        return np.asarray(
            (a @ b.T) + 0.3 * np.linalg.norm(a, axis=1)[:, None] * random.uniform(-1, 1, (len(a), len(b)))
        )

    rows, distances = nearest(queries, references, 3, product=Product(coarse, 0.3, 4))
    wanted, apart = nearest(queries, references, 3)
    assert calls
    assert np.array_equal(rows, wanted)
    assert np.array_equal(distances, apart)
    blind, _ = nearest(queries, references, 3, product=Product(coarse, 0.0, 4))
    assert not np.array_equal(blind, wanted), "without its bound the coarse product misses some"
