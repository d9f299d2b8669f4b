"""A public projection of embeddings: x -> z = clip(B'(x - m)) / C, of norm at most 1.

Mean, basis and clip must come from public data: they are used as they are, and no noise covers them. The file says where they come
from, in words that the lock and the ethics page repeat.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

FORMAT = "synthfactory-projection/1"
MAX_DIMENSION, DEFAULT_DIMENSION = 32, 16
MAX_WIDTH = 65_536
MAX_PROVENANCE = 400
CLIPPED_SHARE = 0.05  # of the public tiles, when a projection is fitted


@dataclass(frozen=True)
class Projection:
    """mean float64 (E,), basis float64 (E, d) with orthonormal columns, clip > 0 in units of the embedding.

    between: root mean square distance of the public classes' means from their middle, in units of the clip: what a class's noise is
    compared with. residual: standard deviation of the embeddings outside the basis, per coordinate. provenance: whose data, in words.
    """

    mean: np.ndarray
    basis: np.ndarray
    clip: float
    between: float
    residual: float
    provenance: str
    encoder: dict[str, str]

    @property
    def width(self) -> int:
        """Width of an embedding, E."""
        return len(self.mean)

    @property
    def dimension(self) -> int:
        """d."""
        return int(self.basis.shape[1])

    @property
    def sha256(self) -> str:
        """Of everything that decides what is released: the arrays' bytes and the clip."""
        digest = hashlib.sha256()
        for part in (self.mean, self.basis, np.array([self.clip, self.residual])):
            digest.update(np.ascontiguousarray(part, np.float64).tobytes())
        return digest.hexdigest()

    def project(self, embeddings_NE: np.ndarray) -> np.ndarray:
        """Finite embeddings (N, E) -> z float64 (N, d), each of norm at most 1. ValueError for another width or a row not finite."""
        if embeddings_NE.ndim != 2 or embeddings_NE.shape[1] != self.width:
            raise ValueError(f"embeddings of shape {embeddings_NE.shape} on a projection of width {self.width}")
        if not np.isfinite(embeddings_NE).all():
            raise ValueError("rows that are not finite are rejected before they are projected")
        # scaled first, so that no square overflows however large a row is
        largest = np.maximum(np.abs(embeddings_NE).max(axis=1, initial=0.0, keepdims=True).astype(np.float64), 1.0)
        flat = ((embeddings_NE / largest - self.mean / largest) @ self.basis) / self.clip
        norm = np.linalg.norm(flat, axis=1, keepdims=True)
        inside = norm * largest <= 1.0
        return np.asarray(np.where(inside, flat * largest, flat / np.maximum(norm, 1e-300)))

    def embed(self, z_ND: np.ndarray) -> np.ndarray:
        """z (N, d) -> embeddings float64 (N, E) in the plane of the basis."""
        return np.asarray(self.mean + self.clip * (z_ND @ self.basis.T))

    def save(self, path: Path) -> None:
        """Writes a safetensors file."""
        facts = {
            "format": FORMAT, "clip": self.clip, "between": self.between, "residual": self.residual,
            "provenance": self.provenance, "encoder": self.encoder,
        }  # fmt: skip
        arrays = {"mean": np.asarray(self.mean, np.float64), "basis": np.ascontiguousarray(self.basis, np.float64)}
        path.write_bytes(save(arrays, metadata={"projection": json.dumps(facts, sort_keys=True)}))


def load_projection(path: str | Path) -> Projection:
    """Reads and checks a file. InputError, naming it, where it is none, or where its parts cannot give the guarantee."""
    try:
        with safe_open(path, framework="numpy") as found:
            facts = read_json((found.metadata() or {}).get("projection", "null"))
            names = set(found.keys())
            shapes = {name: found.get_slice(name).get_shape() for name in names}
            if names != {"mean", "basis"} or max(map(np.prod, shapes.values())) > MAX_WIDTH * MAX_DIMENSION:
                raise InputError(
                    f"{path}: holds {', '.join(sorted(names)) or 'nothing'}; a projection holds mean and basis"
                )
            mean, basis = (found.get_tensor(name).astype(np.float64) for name in ("mean", "basis"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: is no projection file ({error}); fit_projection makes one") from None
    made = _made(path, facts, mean, basis)
    fault = _fault(made)
    if fault:
        raise InputError(f"{path}: {fault}; fit_projection makes one that fits")
    return made


def _made(path: str | Path, facts: Any, mean: np.ndarray, basis: np.ndarray) -> Projection:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{path}: is no projection of form {FORMAT}; fit_projection makes one")
    numbers = [facts.get(name) for name in ("clip", "between", "residual")]
    encoder = facts.get("encoder")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise InputError(f"{path}: its clip, between and residual must be numbers; fit_projection makes them")
    if not isinstance(encoder, dict) or not all(isinstance(value, str) for value in encoder.values()):
        raise InputError(f"{path}: does not say of which encoder's embeddings it is; fit_projection does")
    clip, between, residual = (float(value) for value in numbers if value is not None)
    return Projection(mean, basis, clip, between, residual, str(facts.get("provenance") or ""), encoder)


def _fault(made: Projection) -> str | None:
    """Why this projection would not bound what a tile contributes, or None."""
    if made.mean.ndim != 1 or made.basis.ndim != 2 or made.basis.shape[0] != len(made.mean):
        return f"mean {made.mean.shape} and basis {made.basis.shape} do not fit"
    if not 1 <= made.dimension <= min(MAX_DIMENSION, made.width):
        return f"has {made.dimension} dimensions; 1 to {MAX_DIMENSION} are possible, and no more than the embedding's {made.width}"
    if not (np.isfinite(made.mean).all() and np.isfinite(made.basis).all()):
        return "holds numbers that are not finite"
    if np.abs(made.basis.T @ made.basis - np.eye(made.dimension)).max() > 1e-6:
        return "its basis is not orthonormal"
    if not (
        np.isfinite([made.clip, made.between, made.residual]).all()
        and made.clip > 0
        and made.between > 0
        and made.residual >= 0
    ):
        return "clip and between must be above 0, residual at least 0, all finite"
    if len(made.provenance) > MAX_PROVENANCE or not made.provenance.isprintable():
        return f"says whose data it was made from in more than {MAX_PROVENANCE} characters, or in some that cannot be printed"
    return None if made.provenance.strip() else "does not say whose data it was made from"


def fit_projection(
    embeddings_NE: np.ndarray,
    labels: np.ndarray,
    encoder: dict[str, str],
    provenance: str,
    dimension: int = DEFAULT_DIMENSION,
) -> Projection:
    """From public embeddings (N, E) with labels (N,): their mean, main directions, and the norm that 95 % of them stay below.

    ValueError where they are too few, or of one class only.
    """
    if not np.isfinite(embeddings_NE).all() or len(embeddings_NE) <= dimension:
        raise ValueError(f"{dimension} dimensions need more than that many public embeddings, all of them finite")
    if dimension > embeddings_NE.shape[1]:
        raise ValueError(f"{dimension} dimensions are more than the {embeddings_NE.shape[1]} of an embedding")
    x = embeddings_NE.astype(np.float64)
    mean = x.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    basis = vectors[:, ::-1][:, :dimension]
    basis = basis * np.sign(
        basis[np.abs(basis).argmax(axis=0), np.arange(dimension)]
    )  # one sign, whatever the library's
    flat = (x - mean) @ basis
    clip = float(np.quantile(np.linalg.norm(flat, axis=1), 1 - CLIPPED_SHARE))
    names = np.unique(labels)
    means = np.stack([flat[labels == name].mean(axis=0) for name in names]) / clip
    between = float(np.sqrt(((means - means.mean(axis=0)) ** 2).sum(axis=1).mean()))
    outside = (x - mean) - flat @ basis.T
    rest = max(x.shape[1] - dimension, 1)
    residual = float(np.sqrt((outside**2).sum() / (len(x) * rest)))
    if len(names) < 2:
        raise ValueError("all embeddings are of one class; the distance between classes needs two")
    return Projection(mean, basis, clip, between, residual, provenance, encoder)
