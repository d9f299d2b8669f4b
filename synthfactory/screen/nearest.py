"""How near a drawn tile is to the nearest real tile of the bank, and from where on that is too near."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from synthfactory.embeddings.vectors import unit
from synthfactory.spec.json_text import read_json

PIECE_ROWS = 16_384
FORMAT = "synthfactory-nearest/1"


@dataclass(frozen=True)
class Nearest:
    """Directions of the bank's tiles, float32 (N, E), and the largest cosine that a drawn tile may have to any of them."""

    rows: np.ndarray = field(repr=False)
    threshold: float

    def cosine(self, embeddings_nE: np.ndarray) -> np.ndarray:
        """float64 (n,): of each embedding to the bank's nearest; NaN where it is zero or not finite."""
        found = highest(
            unit(embeddings_nE), (self.rows[at : at + PIECE_ROWS] for at in range(0, len(self.rows), PIECE_ROWS))
        )
        usable = np.isfinite(embeddings_nE).all(axis=1) & (embeddings_nE != 0).any(axis=1)
        return np.where(usable, found, np.nan)

    def to_bytes(self) -> bytes:
        """As LINEAGE holds it for the workers: a line of JSON, then the rows."""
        head = {"format": FORMAT, "shape": self.rows.shape, "threshold": self.threshold}
        return json.dumps(head).encode() + b"\n" + np.ascontiguousarray(self.rows, "<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Nearest:
        """What `to_bytes` wrote. ValueError where it is something else."""
        head, _, rows = data.partition(b"\n")
        says = read_json(head)
        if says["format"] != FORMAT:
            raise ValueError(f"is not of form {FORMAT}")
        return cls(np.frombuffer(rows, "<f4").reshape(says["shape"]), float(says["threshold"]))


def highest(queries_nE: np.ndarray, pieces: Iterable[np.ndarray]) -> np.ndarray:
    """float64 (n,): the largest product of each query with any row of the pieces."""
    found = np.full(len(queries_nE), -np.inf)
    for rows in pieces:
        found = np.maximum(found, (queries_nE @ rows.T).max(axis=1))
    return found
