"""One Gaussian release of a cohort, and the conditions that are drawn from it: post-processing, so any number of them costs nothing more.

Noise is OpenDP's, from the operating system's entropy: it has no seed, is drawn once, and the release is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from synthfactory.plan.keyed import normals
from synthfactory.privacy.moments import SENSITIVITY, WEIGHTS, Layout, Summed, weight
from synthfactory.privacy.projection import Projection
from synthfactory.spec.errors import InputError

FORMAT = "synthfactory-release/1"
FLOOR = 1e-4  # smallest variance of a condition along any direction, in squared units of the clip


def noisy(vector: np.ndarray, sigma: float) -> np.ndarray:
    """The vector with independent Gaussian noise of this standard deviation on every entry, by OpenDP."""
    return np.asarray(_mechanism(sigma)([float(value) for value in vector]), np.float64)


@lru_cache(maxsize=8)
def _mechanism(sigma: float) -> Any:
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise InputError(
            f"privacy: mechanism dp needs dp-accounting and OpenDP ({error}); pip install 'synthfactory[dp]'"
        ) from None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    mechanism = dp.m.make_gaussian(*space, scale=sigma)
    # OpenDP's own statement of what this noise costs; the accountant must not promise more.
    rho = float(mechanism.map(d_in=SENSITIVITY))
    if rho > 0.5 * (SENSITIVITY / sigma) ** 2 * (1 + 1e-9):
        raise RuntimeError(f"OpenDP states rho = {rho:g} for noise {sigma:g}, more than the accountant counts")
    return mechanism


@dataclass(frozen=True)
class Release:
    """What a cohort has given away, and at which price. `vector` float64 (layout.length,), noise included."""

    cohort: str
    classes: tuple[str, ...]
    epsilon: float
    delta: float
    sigma: float
    projection_sha256: str
    dimension: int
    vector: np.ndarray

    @property
    def layout(self) -> Layout:
        """Which entry is what."""
        return Layout(len(self.classes), self.dimension)

    @property
    def sha256(self) -> str:
        """Of everything in it. The noise is in it too, so that this may be published."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Everything, as the ledger keeps it."""
        return {
            "format": FORMAT, "cohort": self.cohort, "classes": list(self.classes), "epsilon": self.epsilon, "delta": self.delta,
            "sigma": self.sigma, "projection_sha256": self.projection_sha256, "dimension": self.dimension,
            "vector": [float(value) for value in self.vector],
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Release:
        """What `to_json` wrote. ValueError where it is something else."""
        if values.get("format") != FORMAT:
            raise ValueError(f"is no release of form {FORMAT}")
        made = cls(
            str(values["cohort"]), tuple(map(str, values["classes"])), float(values["epsilon"]), float(values["delta"]),
            float(values["sigma"]), str(values["projection_sha256"]), int(values["dimension"]),
            np.asarray(values["vector"], np.float64),
        )  # fmt: skip
        if made.vector.shape != (made.layout.length,) or not np.isfinite(made.vector).all():
            raise ValueError("its vector does not fit its classes and dimension, or is not finite")
        return made


def release(
    total: Summed, projection: Projection, cohort: str, classes: Sequence[str], epsilon: float, delta: float
) -> Release:
    """Adds the noise. Every call spends (epsilon, delta) anew: whoever calls it keeps what it returns."""
    from synthfactory.privacy.accountant import sigma_for  # scipy: conditions are drawn without it

    sigma = sigma_for(epsilon, delta)
    return Release(
        cohort, tuple(classes), epsilon, delta, sigma, projection.sha256, projection.dimension, noisy(total.vector, sigma)
    )  # fmt: skip


def mean_noise(sigma: float, dimension: int, patients: float, classes_each: int = 1) -> float:
    """Root mean square error that noise alone puts on the mean of a class of this many patients, in units of the clip.

    Known before anything is released: the noise on the sum, over the weight and the count, where patients have tiles of `classes_each`
    classes each.
    """
    return sigma * math.sqrt(dimension) / (WEIGHTS[1] * max(patients * weight(classes_each), 1.0))


@dataclass(frozen=True)
class Gaussians:
    """What conditions are drawn from: a mean (K, d) of each class, and the root of one covariance (d, d), in units of the clip."""

    means: np.ndarray
    root: np.ndarray


def gaussians(found: Release) -> Gaussians:
    """Means and pooled covariance of a release, made plausible: means of norm at most 1, no negative variance, none above what fits.

    Counts below one patient are taken for one: the mean is then nearly all noise, which `mean_noise` says beforehand.
    """
    counts, sums, moments = found.layout.split(found.vector)
    safe = np.maximum(counts, 1.0)
    means = sums / safe[:, None]
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1.0)
    total = safe.sum()
    within = moments / total - (means * (safe / total)[:, None]).T @ means
    values, vectors = np.linalg.eigh((within + within.T) / 2)
    return Gaussians(means, vectors * np.sqrt(np.clip(values, FLOOR, 1.0)))


def condition(found: Gaussians, projection: Projection, number: int, key: bytes, name: str) -> np.ndarray:
    """The condition of a slot: float32 (E,), a draw of class `number`'s Gaussian keyed by (key, name). Post-processing."""
    draws = normals(key, f"dp:{name}", projection.dimension + projection.width)
    z = found.means[number] + found.root @ draws[: projection.dimension]
    z /= max(float(np.linalg.norm(z)), 1.0)
    rest = draws[projection.dimension :] * projection.residual
    rest -= projection.basis @ (projection.basis.T @ rest)  # outside the basis: public scale, no data
    return np.asarray(projection.embed(z[None])[0] + rest, np.float32)
