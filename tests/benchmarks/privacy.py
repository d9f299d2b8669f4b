"""What an attacker learns from conditions, and what the conditions are good for: each mechanism on invented patients.

    python tests/benchmarks/privacy.py [--patients 600] [--workers 2]

Three disjoint cohorts of phantom tissue: `train` made the projection that ships with the model, `bank` gives members and non-members, two
tiles of each patient, `heldout` the unseen patients that utility is measured on. Attacks look at the conditions themselves; what a drawn
tile gives away of its condition is another question, and no attack here is the best that there could be:

- nearest: the largest cosine of any of a patient's tiles to any condition of the class (what an outsider with the patient's tiles does);
- whitened: the same where both have lost their class's mean and covariance, which the attacker takes from `heldout`, other patients;
- span: how far any of a patient's tiles lies from the span of the class's conditions (blends are sums of members' embeddings);
- informed (dp): knows the release and every other patient's tiles and membership (what the guarantee is about).

Areas under the curve come with 99.9 % intervals (DeLong). Utility: accuracy of a ridge probe on real embeddings of unseen patients, trained
on conditions, over that of one trained on as many real embeddings of members. Embeddings are kept in out/privacy.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthfactory.embeddings.vectors import unit
from synthfactory.evaluate.labels import LabelProbe
from synthfactory.evaluate.membership import auc
from synthfactory.model.encoder import encoder_of
from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_encoder
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.plan.conditions import ClassIndex, choose
from synthfactory.privacy.accountant import auc_bound, mu_of, sigma_for
from synthfactory.privacy.mix import Mixer, assigned, blended, clusters_of
from synthfactory.privacy.moments import Layout, features, summed
from synthfactory.privacy.projection import Projection, load_projection
from synthfactory.privacy.release import Release, condition, gaussians, mean_noise, noisy
from synthfactory.run.protecting import PROJECTION

TILES, HELD_OUT, PIECE = 2, 100, 200
DELTA = 1e-6
SIZES, EPSILONS, PER_PATIENT, KS = (12, 50, 400), (1.0, 3.0, 8.0), (1, 10, 100), (2, 5, 10)
FEW = (12, 25, 50, 100)  # patients of a rare class


@dataclass(frozen=True)
class Cohort:
    """Embeddings (N, E) in order of class and patient, with class numbers and patient numbers (over all classes)."""

    x: np.ndarray
    classes: np.ndarray
    patients: np.ndarray

    def of(self, chosen: np.ndarray) -> Cohort:
        """The rows of these patients."""
        rows = np.isin(self.patients, chosen)
        return Cohort(self.x[rows], self.classes[rows], self.patients[rows])


def _embed(job: tuple[str, int, int, int]) -> np.ndarray:
    torch.set_num_threads(1)
    cohort, count, low, high = job
    folder = open_model("phantom")
    tiles = cohort_tiles(cohort, dict.fromkeys(CLASSES, count * TILES), TILES)
    tiles.sort(key=lambda ref: (ref.patient.class_name, ref.patient.patient_id, ref.tile_number))
    return load_encoder(encoder_of(folder)).embed(np.stack([ref.render()[0] for ref in tiles[low:high]]))


def embedded(cohort: str, per_class: int, out: Path, workers: int) -> Cohort:
    """A cohort's embeddings; kept, for this model."""
    kept = out / f"{cohort}-{per_class}-{open_model('phantom').sha256[:12]}.npy"
    total = per_class * TILES * len(CLASSES)
    if not kept.exists():
        jobs = [(cohort, per_class, low, min(total, low + PIECE)) for low in range(0, total, PIECE)]
        found = []
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for number, part in enumerate(pool.imap(_embed, jobs), start=1):
                found.append(part)
                print(f"{cohort}: {number}/{len(jobs)} pieces", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.concatenate(found))
    patients = np.repeat(np.arange(total // TILES), TILES)
    return Cohort(np.load(kept), patients // per_class, patients)


def members_of(pool: Cohort, per_class: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(members, others): patient numbers, `each` of every class inside."""
    random = np.random.default_rng(seed)
    order = np.concatenate([number * per_class + random.permutation(per_class) for number in range(len(CLASSES))])
    inside = np.tile(np.arange(per_class) < each, len(CLASSES))
    return np.sort(order[inside]), np.sort(order[~inside])


Score = Callable[
    [int, np.ndarray, np.ndarray], np.ndarray
]  # class, tiles (N, E), conditions (M, E) -> (N,), larger: rather a member


def nearest(number: int, tiles: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The largest cosine to a condition."""
    return np.asarray((unit(tiles) @ unit(made).T).max(axis=1))


def whitened(public: Cohort) -> Score:
    """The largest cosine once class mean and pooled covariance of other patients are taken off."""
    means = np.stack([public.x[public.classes == number].mean(axis=0) for number in range(len(CLASSES))]).astype(
        np.float64
    )
    inner = public.x - means[public.classes]
    values, vectors = np.linalg.eigh(inner.T @ inner / len(inner))
    white = vectors / np.sqrt(np.maximum(values, 1e-6 * values.max()))
    return lambda number, tiles, made: nearest(number, (tiles - means[number]) @ white, (made - means[number]) @ white)


def span(number: int, tiles: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Less the distance to the span of all conditions, as a share of a tile's length."""
    _, values, basis = np.linalg.svd(made.astype(np.float64), full_matrices=False)
    basis = basis[values > 1e-5 * values.max()]
    wide = unit(tiles).astype(np.float64)
    return np.asarray(-np.linalg.norm(wide - wide @ basis.T @ basis, axis=1))


def attacked(
    pool: Cohort, conditions: dict[int, np.ndarray], members: np.ndarray, others: np.ndarray, score: Score = nearest
) -> str:
    """Area under the curve of the outsider."""
    best = np.empty(len(pool.x))
    for number, made in conditions.items():
        rows = pool.classes == number
        best[rows] = score(number, pool.x[rows], made)
    names, of_row = np.unique(pool.patients, return_inverse=True)
    scores = np.full(len(names), -np.inf)
    np.maximum.at(scores, of_row, best)
    return shown(scores[np.isin(names, members)], scores[np.isin(names, others)])


def shown(inside: np.ndarray, outside: np.ndarray) -> str:
    """An area with its interval."""
    found = auc(inside, outside)
    return f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})"


def utility(conditions: dict[int, np.ndarray], real: Cohort, unseen: Cohort) -> float:
    """Accuracy of a probe that learnt from conditions over that of one that learnt from as many real embeddings."""
    random = np.random.default_rng(0)
    few = {number: min(len(made), int((real.classes == number).sum())) for number, made in conditions.items()}
    labels = np.concatenate([np.full(count, number) for number, count in few.items()])
    drawn = np.concatenate([conditions[number][:count] for number, count in few.items()])
    rows = [random.permutation(np.flatnonzero(real.classes == number))[:count] for number, count in few.items()]
    on_drawn, on_real = (
        float((LabelProbe(x, labels, len(CLASSES)).predict(unseen.x) == unseen.classes).mean())
        for x in (drawn, real.x[np.concatenate(rows)])
    )
    return on_drawn / on_real


def index_of(cohort: Cohort, number: int) -> tuple[ClassIndex, np.ndarray]:
    """Rows of a class by patient, and the class's embeddings."""
    names, starts = np.unique(cohort.patients[cohort.classes == number], return_index=True)
    x = cohort.x[cohort.classes == number]
    return ClassIndex([f"{name:06d}" for name in names], np.append(starts, len(x))), x


def unprotected(real: Cohort, each: int, key: bytes) -> dict[int, np.ndarray]:
    """Mechanism none: `each` tiles of every patient."""
    made = {}
    for number, name in enumerate(CLASSES):
        index, x = index_of(real, number)
        made[number] = x[[choose(index, slot, key, name) for slot in range(each * len(index.patients))]]
    return made


def mixed(real: Cohort, k: int, each: int, key: bytes) -> dict[int, np.ndarray]:
    """Mechanism mix: every patient is in `each` blends, or in one more."""
    made = {}
    for number, name in enumerate(CLASSES):
        index, x = index_of(real, number)
        found = clusters_of(assigned(lambda rows, x=x: x[rows], index, k, key), index)
        mixer = Mixer(name, found, k, max(0.4, 1 / k), key)
        blends = [mixer.blend(slot) for slot in range(math.ceil(each * len(index.patients) / k))]
        made[number] = np.stack([blended(x[blend.rows], blend.weights) for blend in blends])
    return made


def released(real: Cohort, projection: Projection, epsilon: float) -> Release:
    """One release of the cohort."""
    layout = Layout(len(CLASSES), projection.dimension)
    total = summed(lambda: [(real.x, real.classes, list(map(str, real.patients)))], projection, layout)
    sigma = sigma_for(epsilon, DELTA)
    return Release(
        "c", tuple(CLASSES), epsilon, DELTA, sigma, projection.sha256, projection.dimension, noisy(total.vector, sigma)
    )


def drawn_from(found: Release, projection: Projection, each: int, key: bytes) -> dict[int, np.ndarray]:
    """Mechanism dp: `each` conditions of every class."""
    shape = gaussians(found)
    return {
        number: np.stack([condition(shape, projection, number, key, f"{slot}:{name}") for slot in range(each)])
        for number, name in enumerate(CLASSES)
    }


def contributions(cohort: Cohort, projection: Projection) -> np.ndarray:
    """Of each patient, (P, length): the average of phi over own tiles."""
    phi = features(projection.project(cohort.x), cohort.classes, Layout(len(CLASSES), projection.dimension))
    return phi.reshape(-1, TILES, phi.shape[1]).mean(axis=1)


def informed(pool: Cohort, projection: Projection, epsilon: float, key: int) -> tuple[str, int]:
    """The informed attacker against coin-flipped members: every release tries 120 of them, with coins and noise of its own."""
    phi, sigma = contributions(pool, projection), sigma_for(epsilon, DELTA)
    random = np.random.default_rng(key)
    sides: tuple[list[float], list[float]] = ([], [])
    for tried in np.array_split(random.permutation(len(phi)), max(1, len(phi) // 120)):
        inside = random.random(len(phi)) < 0.5
        vector = noisy(phi[inside].sum(axis=0), sigma)
        for patient in tried:
            others = vector - phi[inside].sum(axis=0) + (phi[patient] if inside[patient] else 0)
            sides[0 if inside[patient] else 1].append(float(others @ phi[patient] / np.linalg.norm(phi[patient])))
    return shown(np.array(sides[0]), np.array(sides[1])), len(phi)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=600, help="of each class, in the cohort of members and others")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/privacy"))
    options = parser.parse_args()
    per_class, key = options.patients, b"privacy benchmark"[:16]
    pool = embedded("bank", per_class, options.out, options.workers)
    unseen = embedded("heldout", HELD_OUT, options.out, options.workers)
    projection = load_projection(open_model("phantom").path / PROJECTION)
    members, others = members_of(pool, per_class, per_class // 2, 1)
    real = pool.of(members)

    white = whitened(unseen)
    print(f"\nnone and mix: {len(members):,} members, {len(others):,} others; areas under the curve")
    print("mechanism  in tiles  nearest                 whitened                utility")
    makers: dict[str, Callable[[Cohort, int], dict[int, np.ndarray]]] = {
        "none": lambda cohort, each: unprotected(cohort, each, key),
        **{f"mix k={k}": lambda cohort, each, k=k: mixed(cohort, k, each, key) for k in KS},  # type: ignore[misc]
    }
    for name, make in makers.items():
        for each in PER_PATIENT:
            made = make(real, each)
            found = "  ".join(attacked(pool, made, members, others, score) for score in (nearest, white))
            print(f"{name:<10} {each:>8}  {found}  {utility(made, real, unseen):.3f}", flush=True)

    print(
        f"\nmix k=5 where classes are rare, {TILES} tiles a patient, embeddings {pool.x.shape[1]} wide; areas under the curve"
    )
    print("patients  in tiles  nearest                 whitened                span")
    for size in FEW:
        inside, outside = members_of(pool, per_class, size, 2)
        outside = np.sort(np.random.default_rng(4).permutation(outside)[: len(inside)])
        for each in PER_PATIENT:
            made = mixed(pool.of(inside), 5, each, key)
            found = "  ".join(attacked(pool, made, inside, outside, score) for score in (nearest, white, span))
            print(f"{size:>8}  {each:>8}  {found}", flush=True)

    bound = auc_bound(mu_of(sigma_for(1.0, DELTA)))
    informed_auc, count = informed(pool, projection, 1.0, 3)
    print(
        f"\ndp, epsilon 1: {count:,} coin-flipped patients, the attacker 'informed': {informed_auc}; bound {bound:.4f}",
        flush=True,
    )

    print(
        f"\ndp at delta {DELTA:g}: patients of each class, predicted noise over the distance between classes (1 or more is refused)"
    )
    print("patients  epsilon  noise  informed: bound  nearest: area under the curve  utility")
    for size in (size for size in SIZES if size < per_class):
        inside, outside = members_of(pool, per_class, size, 2)
        mine = pool.of(inside)
        for epsilon in EPSILONS:
            sigma = sigma_for(epsilon, DELTA)
            release = released(mine, projection, epsilon)
            made = drawn_from(release, projection, 10 * size, key)
            noise = mean_noise(sigma, projection.dimension, size) / projection.between
            print(
                f"{size:>8} {epsilon:>8g} {noise:>6.2f} {auc_bound(mu_of(sigma)):>16.4f}  {attacked(pool, made, inside, outside)}"
                f"{'':>9}{utility(made, mine, unseen):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
